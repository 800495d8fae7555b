"""Several objectives as one reward: weighted, Chebyshev, and Lagrangian with multipliers.

Legend: K objectives, C constraints, N completions. NaN stands where there is no reward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

AUGMENTATION = 0.01
"""Share of the weighted sum in the Chebyshev scalarisation."""


def weighted_sum_of_rewards(
    rewards_KN: Tensor, weights_K: Tensor, *, skip_missing: bool = False
) -> Tensor:
    """sum over k of w_k r_k: float [N].

    Args:
        rewards_KN: float [K, N]; NaN where there is none.
        weights_K: float [K].
        skip_missing: False: a completion that lacks one of the rewards has none. True: it has the
            sum of those it has, as in TRL, and none if it has none; a function that does not apply
            is then no reason to drop the completion, but neither is one that broke.
    """
    present_KN = rewards_KN.isfinite()
    terms_KN = torch.where(present_KN, rewards_KN, 0.0) * weights_K[:, None]
    enough_N = present_KN.any(0) if skip_missing else present_KN.all(0)
    return torch.where(enough_N, terms_KN.sum(0), torch.nan)


def chebyshev(rewards_KN: Tensor, weights_K: Tensor, ideals_K: Tensor) -> Tensor:
    """-max over k of w_k (z_k - r_k), plus a small share of the weighted sum: float [N].

    The reward is what the worst of the objectives falls short of its ideal. A weighted sum can be
    raised by one objective alone, and never reaches the concave parts of a Pareto front.

    Args:
        rewards_KN: float [K, N]; NaN where there is none: such a completion has no reward.
        weights_K: float [K], positive.
        ideals_K: float [K], the best value of each; what is beyond it gains only by the sum.

    Raises:
        ValueError: If a weight is not positive.

    Source: Steuer and Choo 1983, "An Interactive Weighted Tchebycheff Procedure", with the
    augmentation; for policies: Van Moffaert et al. 2013, "Scalarized Multi-Objective Reinforcement
    Learning".
    """
    if not bool((weights_K > 0).all()):
        raise ValueError(f"weights are {weights_K.tolist()}; Chebyshev's must be positive")
    shortfall_KN = weights_K[:, None] * (ideals_K[:, None] - rewards_KN).clamp(min=0.0)
    whole_N = rewards_KN.isfinite().all(0)
    total_N = weighted_sum_of_rewards(rewards_KN, weights_K)
    worst_N = torch.where(whole_N, shortfall_KN, 0.0).amax(0)
    return torch.where(whole_N, AUGMENTATION * total_N - worst_N, torch.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """E[g] <= limit or E[g] >= limit, and how its multiplier moves.

    Attributes:
        limit: The bound, in units of g.
        at_least: Whether it is a lower bound.
        learning_rate: Change of the multiplier per unit of violation and batch.
        max_multiplier: It never exceeds this: a constraint that cannot be met must not drown the
            reward.

    Raises:
        ValueError: If a number is out of range.
    """

    limit: float
    at_least: bool = False
    learning_rate: float = 0.05
    max_multiplier: float = 100.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive")
        if not self.max_multiplier > 0:
            raise ValueError(f"max_multiplier is {self.max_multiplier}; it must be positive")

    def violation(self, values: Tensor) -> Tensor:
        """By how much each value is on the wrong side; negative on the right one."""
        return self.limit - values if self.at_least else values - self.limit

    def updated(self, multiplier: float, values: Tensor) -> float:
        """lambda <- clip(lambda + learning_rate * mean violation, 0, max_multiplier).

        Args:
            multiplier: The present one.
            values: The batch's g, any shape; NaN where there is none, and no change if all are.
        """
        present = values[values.isfinite()]
        if present.numel() == 0:
            return multiplier
        step = self.learning_rate * float(self.violation(present).mean())
        return min(max(multiplier + step, 0.0), self.max_multiplier)


def lagrangian(
    rewards_N: Tensor, violations_CN: Tensor, multipliers_C: Tensor, *, rescale: bool = True
) -> Tensor:
    """(r - sum over c of lambda_c v_c) / (1 + sum of lambda_c): float [N].

    Args:
        rewards_N: float [N]; NaN where there is none.
        violations_CN: float [C, N], from `Constraint.violation`; a completion without one has no
            reward, unless the multiplier is 0.
        multipliers_C: float [C], at least 0.
        rescale: Divide, so that growing multipliers do not grow the gradient.

    Source: Dai et al. 2024, "Safe RLHF" (arXiv:2310.12773).
    """
    active_C1 = multipliers_C[:, None] > 0
    costs_CN = torch.where(active_C1, violations_CN * multipliers_C[:, None], 0.0)
    total_N = rewards_N - costs_CN.sum(0)
    return total_N / (1.0 + multipliers_C.sum()) if rescale else total_N
