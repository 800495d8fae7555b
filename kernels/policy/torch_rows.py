"""The policy loss and its gradient in plain torch.

The gradient is written out: it is as cheap as the loss, and spares the graph of some twenty
[B, T] tensors that autograd would keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc.kernels.policy.spec import Objective, PolicyLossSpec, RatioLevel
from rewardsvc.kernels.token_kl import K3_LIMIT, LOG_RATIO_LIMIT, KlEstimator

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
        if spec.ratio is RatioLevel.SEQUENCE_MEAN:
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
        free, held = -ratio * advantage, -bounded * advantage
        loss = torch.maximum(free, held)
        # d(-r A)/d log r is -r A; where the clipped branch is larger, there is none.
        slope = torch.where(free >= held, free, zero)
        if spec.dual is not None:
            limit = -spec.dual * advantage
            over = (advantage < 0) & (loss > limit)
            loss, slope = torch.where(over, limit, loss), torch.where(over, zero, slope)
        slope = weight * torch.where(level.abs() <= LOG_RATIO_LIMIT, slope, zero)
        if spec.ratio is not RatioLevel.TOKEN:
            # Every token of the sequence moves the one ratio that all of them share.
            slope = slope.sum(1, keepdim=True) * share_B1
        grad = torch.where(mask_BT, slope, zero)

    kl = torch.zeros_like(logp)
    if ref_BT is not None:
        kl, kl_slope = _kl(kept(ref_BT) - logp, spec.kl_estimator)
        grad = grad + spec.kl_coef * weight * kl_slope
    counts = (
        ratio.where(mask_BT, zero),
        ((ratio < low) & (advantage < 0)).float(),
        ((ratio > high) & (advantage > 0)).float(),
        log_ratio,
    )
    sums_B7 = torch.stack([x.sum(1) for x in (weight * loss, weight * kl, kl, *counts)], 1)
    return grad, sums_B7


def _kl(d: Tensor, estimator: KlEstimator) -> tuple[Tensor, Tensor]:
    """The estimate of d = log ref - log policy, and its derivative in log policy."""
    if estimator is KlEstimator.K1:
        return -d, torch.ones_like(d)
    if estimator is KlEstimator.K2:
        return 0.5 * d * d, -d
    bounded = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    growth = torch.expm1(bounded)
    kl = growth - bounded
    free = (d.abs() <= LOG_RATIO_LIMIT) & (kl <= K3_LIMIT)
    return kl.clamp(max=K3_LIMIT), torch.where(free, -growth, 0.0)
