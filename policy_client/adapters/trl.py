"""Reward functions for TRL's GRPO and RLOO trainers, and for what is built on them (Unsloth).

    from rewardsvc.policy_client.adapters.trl import trl_reward
    from rewardsvc.verifiers import MathVerifier

    GRPOTrainer(model, reward_funcs=[trl_reward(MathVerifier())], train_dataset=…)

A scorer of the service needs no adapter: `RewardClient(address).reward_function("rlvr")`. None
reaches the trainer as None: it leaves such a completion out of the baseline, and its advantage is
0. Metrics: `rewards/<name>/mean` is over those with a reward, `<name>/no_reward` the share without.

Source: `GRPOTrainer._calculate_rewards` and `get_callable_name` of TRL 1.16; reward functions may
be sent to other processes by pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardsvc.policy_client.adapters.local import VerifierReward
from rewardsvc.policy_client.client.reward_function import OnError


def trl_reward(
    verifier: Any,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_error: OnError = OnError.RAISE,
) -> VerifierReward:
    """A verifier, or a function that judges one completion, as a TRL reward function.

    Args:
        verifier: For instance `MathVerifier()`, or `def brief(completion, completion_ids): …`.
        name: Under which the trainer logs it.
        columns: Parameter of the verifier → data-set column, where the names differ. `answer` is
            found in `answer`, `solution`, `ground_truth` and the like by itself.
        on_error: What an exception of the verifier's does.

    Returns:
        A picklable callable: keyword arguments as TRL gives them to a list of `float | None`.

    Raises:
        TypeError: If `verifier` does not judge.
        ValueError: If `columns` names a parameter that it does not have.
    """
    return VerifierReward(verifier, name=name, columns=columns, on_error=on_error)
