"""What takes the place of a reward that is missing, for trainers that only know numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from rewardsvc.policy_client.adapters.local import RewardFunctionLike, VerifierReward

OnMissing: TypeAlias = "Literal['raise', 'nan'] | float"
"""For a completion without a reward: raise `NoRewardError`, give NaN, or give this number.

A number teaches the policy that whatever made the reward go missing is worth that much.
"""


_OF_THE_CALL = frozenset({"prompts", "completions", "completion_ids"})
"""What no column may be named."""


class NoRewardError(RuntimeError):
    """A completion has no reward, and the trainer cannot leave it out."""


def check_on_missing(on_missing: OnMissing) -> OnMissing:
    """`on_missing`.

    Raises:
        ValueError: If it is neither "raise", "nan" nor a finite number.
    """
    if on_missing in ("raise", "nan"):
        return on_missing
    if isinstance(on_missing, int | float) and math.isfinite(on_missing):
        return float(on_missing)
    raise ValueError(f"on_missing is {on_missing!r}; give 'raise', 'nan' or a finite number")


def rewards_and_reasons(
    function: RewardFunctionLike,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Any],
) -> tuple[list[float | None], list[str]]:
    """Rewards [N] of completions [N], and why there is none where there is none [N]."""
    further = {name: column for name, column in columns.items() if name not in _OF_THE_CALL}
    if isinstance(function, VerifierReward):
        verdicts = function.verdicts(prompts, completions, **further)
        return [v.reward for v in verdicts], [v.explanation for v in verdicts]
    rewards = function(prompts=prompts, completions=completions, **further)
    return rewards, ["the service gave none; its log says why"] * len(rewards)


def fill_missing(
    name: str, rewards: Sequence[float | None], reasons: Sequence[str], on_missing: OnMissing
) -> list[float]:
    """Rewards with `on_missing` in place of None.

    Raises:
        NoRewardError: If one is missing and `on_missing` says so.
    """
    filled = []
    for reward, reason in zip(rewards, reasons, strict=True):
        if reward is not None:
            filled.append(reward)
        elif on_missing == "raise":
            raise NoRewardError(f"{name}: no reward: {reason}")
        else:
            filled.append(float(on_missing))
    return filled
