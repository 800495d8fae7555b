"""The policy loss and its gradient in plain torch.

The gradient is written out: it is as cheap as the loss, and spares the graph of some twenty
[B, T] tensors that autograd would keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc.kernels.policy.spec import Objective, PolicyLossSpec, RatioLevel
from rewardsvc.kernels.token_kl import (
    ESTIMATE_LIMIT,
    LOG_RATIO_LIMIT,
    KlClamps,
    KlEstimator,
    bounds_estimate,
)

# B sequences, T tokens.

POLICY, KL_TERM, KL, RATIO, LOW, HIGH, OLD_KL = range(7)
NUM_SUMS = 7
"""Columns of the sums of a row: weighted policy and KL terms, then unweighted numbers to watch."""


def policy_rows(
    logp_BT: Tensor,
    old_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    weights_BT: Tensor,
    ref_BT: Tensor | None,
    spec: PolicyLossSpec,
) -> tuple[Tensor, Tensor]:
    """The gradient of the loss in `logp` [B, T], and the sums [B, 7] of each row; float32."""
    zero = torch.zeros((), device=logp_BT.device)

    def kept(x_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, x_BT.to(torch.float32), zero)

    logp, old, advantage, weight = map(kept, (logp_BT, old_BT, advantages_BT, weights_BT))
    log_ratio = logp - old
    share_B1 = torch.ones_like(log_ratio[:, :1])
    if spec.ratio is not RatioLevel.TOKEN:
        if spec.ratio is not RatioLevel.SEQUENCE:
            share_B1 = 1.0 / mask_BT.sum(1, keepdim=True).clamp(min=1)
        whole_B1 = log_ratio.sum(1, keepdim=True) * share_B1
        level = torch.where(mask_BT, whole_B1, zero)
    else:
        level = log_ratio
    ratio = torch.exp(level.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    low, high = 1.0 - spec.eps_low, 1.0 + spec.eps_high
    bounded = ratio.clamp(low, high)

    if spec.objective is Objective.CISPO:
        slope = -bounded * advantage
        loss = slope * logp
        grad = weight * slope
    else:
        # d(-r A)/d log r is -r A.
        loss = slope = -ratio * advantage
        if spec.objective is Objective.CLIP:
            loss, slope = _clipped(loss, -bounded * advantage, advantage, spec.dual)
        slope = weight * torch.where(level.abs() <= LOG_RATIO_LIMIT, slope, zero)
        if spec.ratio in (RatioLevel.SEQUENCE, RatioLevel.SEQUENCE_MEAN):
            # Every token of the sequence moves the one ratio that all of them share.
            slope = slope.sum(1, keepdim=True) * share_B1
        grad = torch.where(mask_BT, slope, zero)

    kl = torch.zeros_like(logp)
    if ref_BT is not None:
        kl, kl_slope = _kl(kept(ref_BT) - logp, spec)
        grad = grad + spec.kl_coef * weight * kl_slope
    # CLIP cuts the gradient for one sign of the advantage, CISPO the weight for either.
    is_low, is_high = ratio < low, ratio > high
    if spec.objective is Objective.CLIP:
        is_low, is_high = is_low & (advantage < 0), is_high & (advantage > 0)
    elif spec.objective is Objective.UNCLIPPED:
        is_low = is_high = torch.zeros_like(mask_BT)
    counts = (ratio.where(mask_BT, zero), is_low.float(), is_high.float(), log_ratio)
    sums_B7 = torch.stack([x.sum(1) for x in (weight * loss, weight * kl, kl, *counts)], 1)
    return grad, sums_B7


def _clipped(
    free: Tensor, held: Tensor, advantage: Tensor, dual: float | None
) -> tuple[Tensor, Tensor]:
    """The clipped loss and its derivative in the log ratio; where the bound holds, there is none.

    `free` is -r A, `held` is -clip(r) A.
    """
    zero = torch.zeros_like(free)
    loss, slope = torch.maximum(free, held), torch.where(free >= held, free, zero)
    if dual is not None:
        limit = -dual * advantage
        over = (advantage < 0) & (loss > limit)
        loss, slope = torch.where(over, limit, loss), torch.where(over, zero, slope)
    return loss, slope


def _kl(d: Tensor, spec: PolicyLossSpec) -> tuple[Tensor, Tensor]:
    """The estimate of d = log ref - log policy, and its derivative in log policy."""
    if spec.kl_estimator is KlEstimator.K1:
        kl, slope = -d, torch.ones_like(d)
    elif spec.kl_estimator is KlEstimator.K2:
        kl, slope = 0.5 * d * d, -d
    else:
        bounded = d
        if spec.kl_clamps is KlClamps.VERL:
            bounded = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        growth = torch.expm1(bounded)
        kl, slope = growth - bounded, torch.where(bounded == d, -growth, 0.0)
    if bounds_estimate(spec.kl_estimator, spec.kl_clamps):
        slope = torch.where(kl.abs() <= ESTIMATE_LIMIT, slope, 0.0)
        kl = kl.clamp(-ESTIMATE_LIMIT, ESTIMATE_LIMIT)
    return kl, slope
