"""Advantages of whole completions, from the rewards of a group of completions of one prompt.

Legend: P prompts, G completions of each (a group). Rewards are float [P, G] with NaN where there is
no reward: such a completion has no advantage, and takes no part in its group's statistics. It never
counts as a reward of 0, which would punish it and praise its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        squares_PG = torch.where(group.valid, centred_PG * centred_PG, 0.0)
        std_P1 = (squares_PG.sum(1, keepdim=True) / (group.count - 1).clamp(min=1)).sqrt()
        centred_PG = centred_PG / (std_P1 + eps)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Rewards with NaN replaced by 0, and the statistics of the valid ones."""

    rewards: Tensor  # [P, G]
    valid: Tensor  # [P, G]
    count: Tensor  # [P, 1], as are the two below
    mean: Tensor
    all_equal: Tensor

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
