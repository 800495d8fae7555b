"""Completions and rewards on their way from the process that made them to all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.online.rewards import Rewards, concat_rewards
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout, concat_rollouts

_TENSORS = ("completion_ids", "completion_mask", "logprobs", "draw_logprobs")


def gather_rollouts(
    world: World, rollouts: Sequence[Rollout], *, pad_id: int, device: torch.device
) -> Rollout:
    """The rollouts of all processes as one, by rank.

    Args:
        world: Of this process.
        rollouts: What this process has made; none where there are fewer prompts than processes.
        pad_id: Stands where there is no token.
        device: Where they are to be.
    """
    if world.size == 1:
        return concat_rollouts(rollouts, pad_id=pad_id)
    mine = concat_rollouts(rollouts, pad_id=pad_id) if rollouts else None
    tensors = {} if mine is None else {name: getattr(mine, name) for name in _TENSORS}
    rest = None if mine is None else [mine.prompt_ids, mine.finish]
    made = zip(world.gather_tensors(tensors, device), world.gather(rest), strict=True)
    parts = [
        Rollout(
            prompt_ids=tuple(tuple(ids) for ids in told[0]),
            finish=tuple(FinishReason(reason) for reason in told[1]),
            **tensors,
        )
        for tensors, told in made
        if told is not None
    ]
    return concat_rollouts(parts, pad_id=pad_id)


def gather_rewards(world: World, rewards: Rewards) -> Rewards:
    """The rewards of all processes as one, by rank."""
    if world.size == 1:
        return rewards
    return concat_rewards([_from_json(told) for told in world.gather(_to_json(rewards))])


def _to_json(rewards: Rewards) -> list[object]:
    """Exact: a float32 is a double, and NaN is written as such."""
    columns = {name: column.tolist() for name, column in rewards.components.items()}
    steps = None if rewards.steps is None else [_row(row) for row in rewards.steps]
    return [rewards.values.tolist(), columns, steps]


def _row(row: Sequence[float] | None) -> list[float] | None:
    return None if row is None else [float(number) for number in row]


def _from_json(told: list[Any]) -> Rewards:
    values, columns, steps = told
    return Rewards(
        values=np.array(values, np.float32),
        components={name: np.array(column, np.float32) for name, column in columns.items()},
        steps=steps,
    )
