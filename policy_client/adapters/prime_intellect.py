"""Rubric functions for Prime Intellect's verifiers.

    import verifiers as vf
    from rewardsvc.policy_client.adapters.prime_intellect import rubric_function
    from rewardsvc.verifiers import MathVerifier

    rubric = vf.Rubric(funcs=[rubric_function(MathVerifier())], weights=[1.0])

A rubric takes floats, and turns an exception of a function into 0.0 and a line in its log. So this
function never raises: a missing reward, and a failing service too, is NaN, which shows in the
metrics and spoils its group instead of teaching the policy something; or a number of one's choice.

Source: `Rubric._call_individual_reward_func` of PrimeIntellect-ai/verifiers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Literal

from rewardsvc.policy_client.adapters.local import as_reward_function
from rewardsvc.policy_client.adapters.missing import (
    OnMissing,
    check_on_missing,
    fill_missing,
    rewards_and_reasons,
)
from rewardsvc.policy_client.client.reward_function import RewardFunction

log = logging.getLogger(__name__)

_OF_THE_RUBRIC = frozenset({"parser", "resources", "state", "task"})
"""For functions in this process alone: a service gets what the data set says."""


class RubricFunction:
    """What a rubric calls with arguments by name, for one rollout.

    Attributes:
        __name__: Under which the rubric logs it.
    """

    def __init__(self, source: Any, name: str | None, on_missing: OnMissing) -> None:
        if on_missing == "raise":
            raise ValueError(
                "on_missing is 'raise', which a rubric turns into 0.0; give 'nan' or a number"
            )
        self._function = as_reward_function(source)
        self._on_missing = check_on_missing(on_missing)
        self.__name__: str = name or self._function.__name__

    async def __call__(
        self,
        completion: Any,
        prompt: Any = "",
        answer: Any = None,
        info: Any = None,
        **columns: Any,
    ) -> float:
        """The reward of one rollout; waits on a thread, not on the event loop.

        Args:
            completion: Text or chat messages.
            prompt: Text or chat messages.
            answer: The reference.
            info: A mapping whose entries are columns as well.
            columns: Whatever else the rubric knows by name.

        Returns:
            The reward, or what stands for a missing one.
        """
        row = {**columns, **(info if isinstance(info, Mapping) else {})}
        if isinstance(self._function, RewardFunction):
            row = {name: value for name, value in row.items() if name not in _OF_THE_RUBRIC}
        if answer not in (None, ""):
            row["answer"] = answer
        try:
            rewards, reasons = await asyncio.to_thread(
                rewards_and_reasons,
                self._function,
                [prompt],
                [completion],
                {name: [value] for name, value in row.items()},
            )
        except Exception:
            log.exception("%s failed, and its reward is missing", self.__name__)
            rewards, reasons = [None], [""]
        return fill_missing(self.__name__, rewards, reasons, self._on_missing)[0]


def rubric_function(
    source: Any, *, name: str | None = None, on_missing: Literal["nan"] | float = "nan"
) -> RubricFunction:
    """A function for `vf.Rubric`.

    Args:
        source: A verifier, a function that judges one completion, or a reward function of the
            client.
        name: Under which the rubric logs it.
        on_missing: What takes the place of a missing reward.

    Raises:
        TypeError: If `source` gives no rewards.
        ValueError: If `on_missing` is malformed.
    """
    return RubricFunction(source, name, on_missing)
