"""Several rewards on one scale: normalised within groups, within the batch, or over the run.

Legend: P prompts, G completions of each. NaN stands where there is no reward, and stays NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.masking import masked_mean, masked_var

REWARD_STD_EPS = 1e-4
"""Added to standard deviations of rewards: TRL's value."""


class RewardNorm(StrEnum):
    """How one reward is normalised before it is combined with others.

    * NONE: not at all.
    * GROUP: (r - mean) / (std + eps) within each group (GDPO).
    * BATCH: the same over the batch.
    * RUNNING: r / (std of all rewards so far + eps): a change of scale and not of sign.
    """

    NONE = "none"
    GROUP = "group"
    BATCH = "batch"
    RUNNING = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of all numbers so far.

    Attributes:
        count: How many.
        mean: Their mean.
        squares: The sum of squared deviations from it.

    Source: Chan et al. 1983, "Algorithms for Computing the Sample Variance", equations 1.5a and
    1.5b: a batch at a time, without the cancellation of sums of squares.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def updated(self, values: Tensor) -> RunningMoments:
        """With the finite ones of `values`, any shape, added."""
        present = values[values.isfinite()].double()
        if present.numel() == 0:
            return self
        number, mean = present.numel(), float(present.mean())
        squares = float((present - mean).square().sum())
        total, difference = self.count + number, mean - self.mean
        return RunningMoments(
            count=total,
            mean=self.mean + difference * number / total,
            squares=self.squares + squares + difference * difference * self.count * number / total,
        )

    @property
    def std(self) -> float:
        """With Bessel's correction; 0 for fewer than two numbers."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


def normalised_rewards(
    rewards_PG: Tensor, norm: RewardNorm, moments: RunningMoments, *, eps: float = REWARD_STD_EPS
) -> Tensor:
    """Rewards on the scale that `norm` asks for: [P, G], NaN where they were.

    Args:
        rewards_PG: float [P, G].
        norm: How.
        moments: For RUNNING: of all rewards so far, these included.
        eps: Added to standard deviations.

    Source: GROUP: NVIDIA 2026, "GDPO: Group reward-Decoupled Normalization Policy Optimization"
    (arXiv:2601.05242). RUNNING: Zheng et al. 2023, "Secrets of RLHF in Large Language
    Models Part I: PPO" (arXiv:2307.04964), without subtracting the mean, which baselines do.
    """
    if norm is RewardNorm.NONE:
        return rewards_PG
    if norm is RewardNorm.RUNNING:
        return rewards_PG / (moments.std + eps) if moments.count > 1 else rewards_PG
    if norm is RewardNorm.BATCH:
        present_PG = rewards_PG.isfinite()
        std = masked_var(rewards_PG, present_PG).sqrt()
        return (rewards_PG - masked_mean(rewards_PG, present_PG)) / (std + eps)
    return torch.stack(
        [normalised_rewards(row[None], RewardNorm.BATCH, moments, eps=eps)[0] for row in rewards_PG]
    )
