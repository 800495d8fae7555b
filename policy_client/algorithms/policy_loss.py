"""The policy-gradient losses of PPO and its relatives, per token.

`importance_ratio` is the one column, `clipped_policy_loss`, `unclipped_policy_loss` and
`cispo_policy_loss` are the values of the other; `policy_loss` picks by name.

Legend: N sequences, T completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log ratios are clamped to +-20 before they are exponentiated: verl's value."""


class RatioLevel(StrEnum):
    """Over what the importance ratio policy / old policy is taken.

    * TOKEN: each token its own (PPO, GRPO).
    * SEQUENCE: the product over the completion, one for all of its tokens (RLOO as TRL has it).
    * SEQUENCE_MEAN: the geometric mean over the completion, one for all of its tokens (GSPO).
    * SEQUENCE_MEAN_TOKEN: the same value, but each token's ratio has the gradient of that token
      alone (GSPO-token).
    """

    TOKEN = "token"  # noqa: S105 - no secret
    SEQUENCE = "sequence"
    SEQUENCE_MEAN = "sequence-mean"
    SEQUENCE_MEAN_TOKEN = "sequence-mean-token"  # noqa: S105 - no secret


class Objective(StrEnum):
    """What a token's loss is; r is the ratio, A the advantage.

    * CLIP: -min(r A, clip(r) A): the gradient stops where clipping binds (PPO and its relatives).
    * UNCLIPPED: -r A (PPO-penalty, which holds the policy back by a KL term; REINFORCE at r = 1).
    * CISPO: -sg(clip(r)) A log p: the weight is clipped, and every token keeps its gradient.
    """

    CLIP = "clip"
    UNCLIPPED = "unclipped"
    CISPO = "cispo"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRange:
    """How far the ratio may move before its gradient is cut.

    Attributes:
        eps_low: Lower bound 1 - eps_low, for negative advantages.
        eps_high: Upper bound 1 + eps_high, for positive advantages. Larger than `eps_low` is DAPO's
            "clip-higher", which leaves room for unlikely tokens to grow.
        dual: With a negative advantage the loss per token is at most `dual` times |advantage|, so
            that a huge ratio cannot blow it up. More than 1; None for no such bound.

    Raises:
        ValueError: If a bound is out of range.
    """

    eps_low: float = 0.2
    eps_high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eps_low <= 1:
            raise ValueError(f"eps_low is {self.eps_low}; it must be between 0 and 1")
        if self.eps_high < 0:
            raise ValueError(f"eps_high is {self.eps_high}; it must not be negative")
        if self.dual is not None and self.dual <= 1:
            raise ValueError(f"dual is {self.dual}; it must be more than 1, or None for no bound")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Per-token losses, to be aggregated, and what was clipped.

    Attributes:
        loss: float [N, T], 0 where masked.
        ratio: float [N, T], detached; 1 where masked.
        clipped_low: bool [N, T]: the lower bound cut the gradient.
        clipped_high: bool [N, T]: the upper bound cut the gradient.
    """

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def importance_ratio(
    logprobs_NT: Tensor, old_logprobs_NT: Tensor, mask_NT: Tensor, level: RatioLevel
) -> Tensor:
    """pi / pi_old at each token: float [N, T], 1 where masked.

    * TOKEN: r_t = exp(log p_t - log p_old,t).
    * SEQUENCE: the product of all r_t of a completion.
    * SEQUENCE_MEAN: s = exp(mean of log r_t over the completion's tokens). Its gradient is spread
      evenly over the tokens; advantages that vary within a completion are all weighted by it.
    * SEQUENCE_MEAN_TOKEN: sg(s) p_t / sg(p_t): the value is s, the gradient is s times that of
      log p_t. Summed over a completion with one advantage it is the gradient of SEQUENCE_MEAN;
      with advantages that vary by token, each token answers for its own.

    Args:
        logprobs_NT: float [N, T], under the policy.
        old_logprobs_NT: float [N, T], under the policy that made the rollout.
        mask_NT: bool [N, T].
        level: Over what.

    Source: TOKEN: Schulman et al. 2017, equation 6 (arXiv:1707.06347). SEQUENCE_MEAN and
    SEQUENCE_MEAN_TOKEN: Zheng et al. 2025, "Group Sequence Policy Optimization", equation 7 and
    section 4.3 (arXiv:2507.18071). Log ratios are clamped to +-20, as verl does with tokens.
    """
    log_ratio_NT = torch.where(mask_NT, logprobs_NT - old_logprobs_NT, 0.0)
    if level is not RatioLevel.TOKEN:
        total_N1 = log_ratio_NT.sum(1, keepdim=True)
        if level is not RatioLevel.SEQUENCE:
            total_N1 = total_N1 / mask_NT.sum(1, keepdim=True).clamp(min=1)
        if level is RatioLevel.SEQUENCE_MEAN_TOKEN:
            own_NT = torch.where(mask_NT, logprobs_NT, 0.0)
            total_N1 = total_N1.detach() + (own_NT - own_NT.detach())
        log_ratio_NT = torch.where(mask_NT, total_N1, 0.0)
    return log_ratio_NT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def policy_loss(
    logprobs_NT: Tensor,
    ratio_NT: Tensor,
    advantages_NT: Tensor,
    mask_NT: Tensor,
    *,
    objective: Objective,
    clip: ClipRange,
) -> PolicyLoss:
    """The loss of each token by the objective's name.

    Args:
        logprobs_NT: float [N, T], under the policy.
        ratio_NT: float [N, T], from `importance_ratio` of `logprobs_NT`.
        advantages_NT: float [N, T].
        mask_NT: bool [N, T].
        objective: Which loss.
        clip: The bounds; UNCLIPPED has none.
    """
    if objective is Objective.CISPO:
        return cispo_policy_loss(logprobs_NT, ratio_NT, advantages_NT, mask_NT, clip=clip)
    if objective is Objective.UNCLIPPED:
        return unclipped_policy_loss(ratio_NT, advantages_NT, mask_NT)
    return clipped_policy_loss(ratio_NT, advantages_NT, mask_NT, clip)


def clipped_policy_loss(
    ratio_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor, clip: ClipRange
) -> PolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - eps_low, 1 + eps_high) * A) at each token.

    Args:
        ratio_NT: float [N, T], from `importance_ratio`.
        advantages_NT: float [N, T].
        mask_NT: bool [N, T].
        clip: The bounds.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7
    (arXiv:1707.06347); separate bounds: Yu et al. 2025, equation 10 (arXiv:2503.14476); dual clip:
    Ye et al. 2020, "Mastering Complex Control in MOBA Games", equation 5 (arXiv:1912.09729).
    """
    advantages_NT = torch.where(mask_NT, advantages_NT, 0.0)
    ratio_NT = torch.where(mask_NT, ratio_NT, 1.0)
    low, high = 1 - clip.eps_low, 1 + clip.eps_high
    loss_NT = torch.maximum(-ratio_NT * advantages_NT, -ratio_NT.clamp(low, high) * advantages_NT)
    if clip.dual is not None:
        bounded_NT = torch.minimum(loss_NT, -clip.dual * advantages_NT)
        loss_NT = torch.where(advantages_NT < 0, bounded_NT, loss_NT)
    ratio_NT = ratio_NT.detach()
    return PolicyLoss(
        loss=loss_NT,
        ratio=ratio_NT,
        clipped_low=(ratio_NT < low) & (advantages_NT < 0),
        clipped_high=(ratio_NT > high) & (advantages_NT > 0),
    )


def unclipped_policy_loss(ratio_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor) -> PolicyLoss:
    """-ratio * A at each token.

    Args:
        ratio_NT: float [N, T], from `importance_ratio`.
        advantages_NT: float [N, T].
        mask_NT: bool [N, T].

    Source: Schulman et al. 2017, equation 8 without its KL term (arXiv:1707.06347), which is a
    column of its own.
    """
    advantages_NT = torch.where(mask_NT, advantages_NT, 0.0)
    ratio_NT = torch.where(mask_NT, ratio_NT, 1.0)
    nowhere_NT = torch.zeros_like(mask_NT)
    return PolicyLoss(
        loss=-ratio_NT * advantages_NT,
        ratio=ratio_NT.detach(),
        clipped_low=nowhere_NT,
        clipped_high=nowhere_NT,
    )


def cispo_policy_loss(
    logprobs_NT: Tensor,
    ratio_NT: Tensor,
    advantages_NT: Tensor,
    mask_NT: Tensor,
    *,
    clip: ClipRange,
) -> PolicyLoss:
    """-sg(clip(ratio, 1 - eps_low, 1 + eps_high)) * A * log p at each token.

    Args:
        logprobs_NT: float [N, T], under the policy.
        ratio_NT: float [N, T], from `importance_ratio`; only its value is used.
        advantages_NT: float [N, T].
        mask_NT: bool [N, T].
        clip: The bounds of the weight; eps_low = 1 is no lower one, as a ratio is positive. TRL's
            `epsilon_high` is the upper bound itself, eps_high + 1 here. `dual` is not used.

    Returns:
        The losses; `clipped_low` and `clipped_high` say where the weight was clipped, for either
        sign of the advantage. No gradient was cut there.

    Source: MiniMax 2025, "MiniMax-M1", equations 4 and 5 (arXiv:2506.13585).
    """
    advantages_NT = torch.where(mask_NT, advantages_NT, 0.0)
    logprobs_NT = torch.where(mask_NT, logprobs_NT, 0.0)
    ratio_NT = torch.where(mask_NT, ratio_NT, 1.0).detach()
    low, high = 1 - clip.eps_low, 1 + clip.eps_high
    return PolicyLoss(
        loss=-ratio_NT.clamp(low, high) * advantages_NT * logprobs_NT,
        ratio=ratio_NT,
        clipped_low=ratio_NT < low,
        clipped_high=ratio_NT > high,
    )
