"""What a policy loss is made of, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from rewardsvc.kernels.token_kl import KlClamps, KlEstimator


class RatioLevel(StrEnum):
    """Over what the importance ratio policy / old policy is taken.

    TOKEN: Each token its own (PPO, GRPO, DAPO, CISPO).
    SEQUENCE: The product over the completion, one for all of its tokens.
    SEQUENCE_MEAN: The geometric mean over the completion (GSPO).
    SEQUENCE_MEAN_TOKEN: The same value, but each token's ratio has the gradient of that token alone
        (GSPO-token).
    """

    TOKEN = "token"  # noqa: S105 - no secret
    SEQUENCE = "sequence"
    SEQUENCE_MEAN = "sequence-mean"
    SEQUENCE_MEAN_TOKEN = "sequence-mean-token"  # noqa: S105 - no secret


class Objective(StrEnum):
    """What a token's loss is; r is the ratio, A the advantage, c the ratio clipped.

    CLIP: -min(r A, c A): the gradient stops where clipping binds (PPO and its relatives).
    UNCLIPPED: -r A (REINFORCE, PPO with a KL penalty instead of bounds).
    CISPO: -c A log p, with c a constant: the weight is clipped and every token keeps its gradient.
    """

    CLIP = "clip"
    UNCLIPPED = "unclipped"
    CISPO = "cispo"


class Aggregation(StrEnum):
    """The weight of a token's loss; n is the number of tokens of its sequence, B of sequences.

    TOKEN_MEAN: 1 / sum of n (DAPO).
    SEQ_MEAN_TOKEN_MEAN: 1 / (B n) (GRPO's paper).
    SEQ_MEAN_TOKEN_SUM: 1 / B.
    SEQ_MEAN_TOKEN_SUM_NORM: 1 / (B L) with a constant L (Dr. GRPO).
    GROUP_MEAN_TOKEN_MEAN: 1 / (P m) with P groups, m tokens of the sequence's whole group.
    """

    TOKEN_MEAN = "token-mean"  # noqa: S105 - no secret
    SEQ_MEAN_TOKEN_MEAN = "seq-mean-token-mean"  # noqa: S105 - no secret
    SEQ_MEAN_TOKEN_SUM = "seq-mean-token-sum"  # noqa: S105 - no secret
    SEQ_MEAN_TOKEN_SUM_NORM = "seq-mean-token-sum-norm"  # noqa: S105 - no secret
    GROUP_MEAN_TOKEN_MEAN = "group-mean-token-mean"  # noqa: S105 - no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLossSpec:
    """One algorithm's loss.

    Attributes:
        objective: What a token's loss is.
        ratio: Over what the ratio is taken.
        eps_low: Lower bound 1 - eps_low of the ratio, in [0, 1].
        eps_high: Upper bound 1 + eps_high, at least 0.
        dual: With a negative advantage a clipped loss is at most `dual` |A|. More than 1; None for
            no such bound. Of CLIP alone.
        aggregation: The weights of tokens, where the call gives none.
        norm_length: L of SEQ_MEAN_TOKEN_SUM_NORM.
        kl_coef: Weight of the KL term; 0 for none.
        kl_estimator: Of the KL term.
        kl_clamps: Whose bounds on the estimate.

    Raises:
        ValueError: If a value is out of range.
    """

    objective: Objective = Objective.CLIP
    ratio: RatioLevel = RatioLevel.TOKEN
    eps_low: float = 0.2
    eps_high: float = 0.2
    dual: float | None = None
    aggregation: Aggregation = Aggregation.TOKEN_MEAN
    norm_length: int | None = None
    kl_coef: float = 0.0
    kl_estimator: KlEstimator = KlEstimator.K3
    kl_clamps: KlClamps = KlClamps.VERL

    def __post_init__(self) -> None:
        if not 0 <= self.eps_low <= 1:
            raise ValueError(f"eps_low is {self.eps_low}; it must be in [0, 1]")
        if not self.eps_high >= 0:
            raise ValueError(f"eps_high is {self.eps_high}; it must be at least 0")
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"dual is {self.dual}; it must be more than 1, or None for no bound")
        if self.aggregation is Aggregation.SEQ_MEAN_TOKEN_SUM_NORM and (self.norm_length or 0) < 1:
            raise ValueError(
                f"norm_length is {self.norm_length}; {self.aggregation} needs a positive length"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyLoss:
    """The loss, and what to watch. All scalars; all but `loss` without gradient.

    Means are over unmasked tokens, whatever their weights.

    Attributes:
        loss: Policy term plus `kl_coef` times the KL term; to go backward from.
        policy: The weighted policy term.
        kl: Mean KL estimate in nats; 0 without a reference.
        ratio: Mean ratio.
        clipped_low: Fraction of tokens whose gradient (CLIP) or weight (CISPO) the lower bound cut.
        clipped_high: Likewise the upper bound.
        old_kl: Mean k1 estimate of KL(policy || old policy) in nats.
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    old_kl: Tensor


def aggregation_weights(
    mask: Tensor,
    aggregation: str,
    *,
    norm_length: int | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """The weight of each token's loss: float32 in the shape of the mask, 0 where masked.

    Take them from the mask of the whole batch and cut them with it: the losses of micro-batches
    then add up to the batch's. B and P count sequences and groups with at least one unmasked token.

    Args:
        mask: bool [B, T].
        aggregation: One of `Aggregation`.
        norm_length: L of SEQ_MEAN_TOKEN_SUM_NORM.
        groups: int [B], the number of each sequence's group, for GROUP_MEAN_TOKEN_MEAN.

    Raises:
        ValueError: If the aggregation is unknown, or what it needs is not given.
    """
    mode = Aggregation(aggregation)
    ones_BT = mask.to(torch.float32)
    lengths_B1 = ones_BT.sum(1, keepdim=True)
    if mode is Aggregation.TOKEN_MEAN:
        return ones_BT / lengths_B1.sum().clamp(min=1)
    if mode is Aggregation.GROUP_MEAN_TOKEN_MEAN:
        if groups is None:
            raise ValueError(f"groups is None; {mode} needs to know which sequences are a group")
        return ones_BT / _tokens_of_groups(mask, groups)
    weights_BT = ones_BT / (lengths_B1 > 0).sum().clamp(min=1)
    if mode is Aggregation.SEQ_MEAN_TOKEN_MEAN:
        return weights_BT / lengths_B1.clamp(min=1)
    if mode is Aggregation.SEQ_MEAN_TOKEN_SUM:
        return weights_BT
    if norm_length is None or norm_length < 1:
        raise ValueError(f"norm_length is {norm_length}; {mode} needs a positive length")
    return weights_BT / norm_length


def _tokens_of_groups(mask: Tensor, groups: Tensor) -> Tensor:
    """[B, 1]: P m of each sequence."""
    _, group_B = torch.unique(groups, return_inverse=True)
    # Integers: their sum has no order to depend on.
    tokens_P = torch.zeros_like(group_B).index_add_(0, group_B, mask.sum(1))
    return (tokens_P[group_B].clamp(min=1) * (tokens_P > 0).sum().clamp(min=1))[:, None]
