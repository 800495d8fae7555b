"""Advantages of whole completions, from the rewards of a group of completions of one prompt.

Legend: P prompts, G completions of each (a group). Rewards are float [P, G] with NaN where there is
no reward: such a completion has no advantage, and takes no part in its group's statistics. It never
counts as a reward of 0, which would punish it and praise its neighbours. Padding cannot leak in
either: there are no tokens here, only completions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.masking import masked_var

GROUP_STD_EPS = 1e-4
"""Added to a group's standard deviation: TRL's value. verl has 1e-6, OpenRLHF 1e-9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAdvantages:
    """One advantage per completion.

    Attributes:
        values: float [P, G], finite; 0 where `valid` is False.
        valid: bool [P, G]: whether the completion may be learned from: it has a reward, and at
            least one other of its group has one, since a lone reward has no baseline.
        zero_std: bool [P]: at least two rewards, all equal: nothing to learn from this group.
    """

    values: Tensor
    valid: Tensor
    zero_std: Tensor


def group_normalised(
    rewards_PG: Tensor, *, scale_by_std: bool = True, eps: float = GROUP_STD_EPS
) -> GroupAdvantages:
    """(r - mean of the group) / (std of the group + eps).

    Args:
        rewards_PG: float [P, G]; NaN where there is no reward.
        scale_by_std: False gives r - mean, as Dr. GRPO does to not favour prompts that are nearly
            always or nearly never solved.
        eps: Added to the standard deviation.

    Returns:
        Advantages of the dtype of `rewards_PG`. A group of equal rewards has exactly 0: the
        rounding of its mean is not blown up by a tiny standard deviation.

    Raises:
        ValueError: If `rewards_PG` is not two-dimensional.

    Source: Shao et al. 2024, "DeepSeekMath", section 4.1.2 (arXiv:2402.03300); without the standard
    deviation: Liu et al. 2025, "Understanding R1-Zero-Like Training", equation 3
    (arXiv:2503.20783). The standard deviation has Bessel's correction, as in every library.
    """
    group = _Group.of(rewards_PG)
    centred_PG = group.rewards - group.mean
    if scale_by_std:
        centred_PG = centred_PG / (group.std + eps)
    return group.finish(centred_PG)


def leave_one_out(rewards_PG: Tensor) -> GroupAdvantages:
    """r - mean of the rewards of the others of the group.

    Args:
        rewards_PG: float [P, G]; NaN where there is no reward.

    Returns:
        Advantages of the dtype of `rewards_PG`. With k rewards in the group this equals
        k / (k - 1) * (r - mean of all), which is how it is computed.

    Raises:
        ValueError: If `rewards_PG` is not two-dimensional.

    Source: Ahmadian et al. 2024, "Back to Basics", equation 9 (arXiv:2402.14740); Kool et al. 2019,
    "Buy 4 REINFORCE Samples, Get a Baseline for Free!".
    """
    group = _Group.of(rewards_PG)
    scale_P1 = group.count / (group.count - 1).clamp(min=1)
    return group.finish(scale_P1 * (group.rewards - group.mean))


def leave_one_out_normalised(rewards_PG: Tensor, *, eps: float = GROUP_STD_EPS) -> GroupAdvantages:
    """(r - mean of the others) / (std of the whole group + eps).

    The baseline leaves the completion out, the scale does not. Scaling by the deviation of the
    *others* is the obvious version, and wrong: one success among failures has others that are all
    equal, a deviation of 0, and an advantage of 1 / eps.

    Args:
        rewards_PG: float [P, G]; NaN where there is no reward.
        eps: Added to the standard deviation.

    Returns:
        Advantages of the dtype of `rewards_PG`, at most sqrt(G) in absolute value.

    Raises:
        ValueError: If `rewards_PG` is not two-dimensional.

    Source: `leave_one_out` over the standard deviation of Shao et al. 2024, section 4.1.2
    (arXiv:2402.03300).
    """
    group = _Group.of(rewards_PG)
    scale_P1 = group.count / (group.count - 1).clamp(min=1)
    return group.finish(scale_P1 * (group.rewards - group.mean) / (group.std + eps))


def group_centred_batch_scaled(
    rewards_PG: Tensor, *, eps: float = GROUP_STD_EPS
) -> GroupAdvantages:
    """(r - mean of the group) / (std of all rewards of the batch + eps).

    Args:
        rewards_PG: float [P, G]; NaN where there is no reward.
        eps: Added to the standard deviation.

    Returns:
        Advantages of the dtype of `rewards_PG`.

    Raises:
        ValueError: If `rewards_PG` is not two-dimensional.

    Source: Liu et al. 2025, "Tricks or Traps? A Deep Dive into RL for LLM Reasoning", section 4
    (arXiv:2508.08221); the deviation has Bessel's correction, as in TRL's `scale_rewards="batch"`.
    """
    group = _Group.of(rewards_PG)
    std = masked_var(rewards_PG, rewards_PG.isfinite()).sqrt()
    return group.finish((group.rewards - group.mean) / (std + eps))


def against_baseline(rewards_PG: Tensor, baseline: float) -> GroupAdvantages:
    """r - b with one number b for all: every completion that has a reward may be learned from.

    Args:
        rewards_PG: float [P, G]; NaN where there is no reward. G may be 1.
        baseline: In units of reward; for instance from `moving_baseline`.

    Returns:
        Advantages of the dtype of `rewards_PG`. A group of equal rewards has one too, unless these
        equal the baseline.

    Raises:
        ValueError: If `rewards_PG` is not two-dimensional.

    Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms", section 3
    (reinforcement comparison).
    """
    group = _Group.of(rewards_PG)
    present_PG = rewards_PG.isfinite()
    return GroupAdvantages(
        values=torch.where(present_PG, group.rewards - baseline, 0.0),
        valid=present_PG,
        zero_std=group.finish(group.rewards).zero_std,
    )


def moving_baseline(baseline: float | None, rewards: Tensor, *, decay: float) -> float | None:
    """b <- decay * b + (1 - decay) * mean(r): the baseline that the next batch is compared with.

    The batch's own rewards must not be part of its baseline, so update it after the advantages are
    taken; only the very first batch, which has nothing else to be compared with, gets its own mean.

    Args:
        baseline: The present one; None before the first batch.
        rewards: Any shape; NaN where there is no reward.
        decay: In [0, 1): 0.9 remembers about ten batches.

    Returns:
        The new one: the mean of `rewards` if there was none, and `baseline` if no reward is there.

    Raises:
        ValueError: If `decay` is out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it must be in [0, 1)")
    present = rewards[rewards.isfinite()]
    if present.numel() == 0:
        return baseline
    mean = float(present.mean())
    return mean if baseline is None else decay * baseline + (1 - decay) * mean


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Rewards with NaN replaced by 0, and the statistics of the valid ones."""

    rewards: Tensor  # [P, G]
    valid: Tensor  # [P, G]
    count: Tensor  # [P, 1], as are the two below
    mean: Tensor
    all_equal: Tensor

    @property
    def std(self) -> Tensor:
        """[P, 1], with Bessel's correction; 0 for groups of fewer than two."""
        centred_PG = torch.where(self.valid, self.rewards - self.mean, 0.0)
        squares_P1 = (centred_PG * centred_PG).sum(1, keepdim=True)
        return (squares_P1 / (self.count - 1).clamp(min=1)).sqrt()

    @classmethod
    def of(cls, rewards_PG: Tensor) -> _Group:
        if rewards_PG.dim() != 2:
            raise ValueError(f"rewards_PG has shape {tuple(rewards_PG.shape)}, expected [P, G]")
        present_PG = rewards_PG.isfinite()
        clean_PG = torch.where(present_PG, rewards_PG, 0.0)
        count_P1 = present_PG.sum(1, keepdim=True, dtype=rewards_PG.dtype)
        mean_P1 = clean_PG.sum(1, keepdim=True) / count_P1.clamp(min=1)
        infinity = float("inf")
        low_P1 = torch.where(present_PG, rewards_PG, infinity).amin(1, keepdim=True)
        high_P1 = torch.where(present_PG, rewards_PG, -infinity).amax(1, keepdim=True)
        return cls(
            rewards=clean_PG,
            valid=present_PG & (count_P1 >= 2),
            count=count_P1,
            mean=mean_P1,
            all_equal=low_P1 >= high_P1,
        )

    def finish(self, values_PG: Tensor) -> GroupAdvantages:
        return GroupAdvantages(
            values=torch.where(self.valid & ~self.all_equal, values_PG, 0.0),
            valid=self.valid,
            zero_std=(self.all_equal & (self.count >= 2)).squeeze(1),
        )
