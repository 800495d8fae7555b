"""The policy loss and its gradient in Triton: one program a row, one pass over it.

With one ratio a sequence, the row is read three times: for the ratio, for the slope that all tokens
share, and to write. A row is a few kilobytes, so the second and third reading come from the cache.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rewardsvc.kernels.policy.spec import Objective, PolicyLossSpec, RatioLevel
from rewardsvc.kernels.policy.torch_rows import NUM_SUMS
from rewardsvc.kernels.token_kl import KlClamps, KlEstimator
from rewardsvc.kernels.triton_math import LOG2E, launch

BLOCK_T = 1024
NUM_WARPS = 4
ESTIMATORS = {KlEstimator.K1: 1, KlEstimator.K2: 2, KlEstimator.K3: 3}
CLAMPS = {KlClamps.NONE: 0, KlClamps.VERL: 1, KlClamps.OPENRLHF: 2}
OBJECTIVES = {Objective.CLIP: 0, Objective.UNCLIPPED: 1, Objective.CISPO: 2}


@triton.jit
def _kl(d, ESTIMATOR: tl.constexpr, CLAMPS: tl.constexpr):
    """Estimate and derivative in log policy, as in `torch_rows.py`."""
    if ESTIMATOR == 1:
        kl = -d
        slope = tl.full(d.shape, 1.0, tl.float32)
    elif ESTIMATOR == 2:
        kl = 0.5 * d * d
        slope = -d
    else:
        b = d
        if CLAMPS == 1:
            b = tl.minimum(tl.maximum(d, -20.0), 20.0)
        # exp(b) - 1 - b cancels near 0; there, its series to b^8.
        tail = 1.0 + b * (1.0 / 6.0) * (1.0 + b * (1.0 / 7.0) * (1.0 + b * 0.125))
        near = 0.5 * b * b * (1.0 + b * (1.0 / 3.0) * (1.0 + b * 0.25 * (1.0 + b * 0.2 * tail)))
        kl = tl.where(tl.abs(b) < 0.25, near, tl.exp2(b * LOG2E) - 1.0 - b)
        slope = tl.where(b == d, -(kl + b), 0.0)
    if CLAMPS == 2 or (CLAMPS == 1 and ESTIMATOR == 3):
        slope = tl.where(tl.abs(kl) <= 10.0, slope, 0.0)
        kl = tl.minimum(tl.maximum(kl, -10.0), 10.0)
    return kl, slope


@triton.jit
def _load(ptr, offsets, keep):
    return tl.load(ptr + offsets, keep, 0.0).to(tl.float32)


@triton.jit
def policy_loss_kernel(
    logp_ptr,
    old_ptr,
    advantages_ptr,
    mask_ptr,
    weights_ptr,
    ref_ptr,
    grad_ptr,
    sums_ptr,
    num_tokens,
    low,
    high,
    dual,
    kl_coef,
    OBJECTIVE: tl.constexpr,
    DUAL: tl.constexpr,
    SHARED: tl.constexpr,
    MEAN: tl.constexpr,
    OWN_SLOPE: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    CLAMPS: tl.constexpr,
    NUM_SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its gradient [T] and its sums.

    OBJECTIVE: see OBJECTIVES. SHARED: one ratio a sequence. OWN_SLOPE: which each token moves for
    itself alone. ESTIMATOR 0: no KL.
    """
    CISPO: tl.constexpr = OBJECTIVE == 2
    SHARED_SLOPE: tl.constexpr = SHARED and not (CISPO or OWN_SLOPE)
    row = tl.program_id(0).to(tl.int64)
    base = row * num_tokens
    lanes = tl.arange(0, BLOCK)
    shared_level = 0.0
    share = 1.0
    if SHARED:
        total = tl.zeros((BLOCK,), tl.float32)
        count = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, num_tokens, BLOCK):
            t = first + lanes
            keep = (tl.load(mask_ptr + base + t, t < num_tokens, 0) != 0) & (t < num_tokens)
            total += _load(logp_ptr, base + t, keep) - _load(old_ptr, base + t, keep)
            count += keep.to(tl.float32)
        if MEAN:
            share = 1.0 / tl.maximum(tl.sum(count, 0), 1.0)
        shared_level = tl.sum(total, 0) * share

    policy = tl.zeros((BLOCK,), tl.float32)
    kl_term = tl.zeros((BLOCK,), tl.float32)
    kl_sum = tl.zeros((BLOCK,), tl.float32)
    ratio_sum = tl.zeros((BLOCK,), tl.float32)
    num_low = tl.zeros((BLOCK,), tl.float32)
    num_high = tl.zeros((BLOCK,), tl.float32)
    old_kl = tl.zeros((BLOCK,), tl.float32)
    slopes = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, num_tokens, BLOCK):
        t = first + lanes
        keep = (tl.load(mask_ptr + base + t, t < num_tokens, 0) != 0) & (t < num_tokens)
        logp = _load(logp_ptr, base + t, keep)
        advantage = _load(advantages_ptr, base + t, keep)
        weight = _load(weights_ptr, base + t, keep)
        log_ratio = logp - _load(old_ptr, base + t, keep)
        level = log_ratio
        if SHARED:
            level = tl.where(keep, shared_level, 0.0)
        ratio = tl.exp2(tl.minimum(tl.maximum(level, -20.0), 20.0) * LOG2E)
        bounded = tl.minimum(tl.maximum(ratio, low), high)
        if CISPO:
            slope = -bounded * advantage
            loss = slope * logp
            slope = slope * weight
            is_low = ratio < low
            is_high = ratio > high
        elif OBJECTIVE == 1:
            loss = -ratio * advantage
            slope = tl.where(tl.abs(level) <= 20.0, loss, 0.0) * weight
            is_low = ratio < 0.0
            is_high = ratio < 0.0
        else:
            free = -ratio * advantage
            held = -bounded * advantage
            loss = tl.maximum(free, held)
            slope = tl.where((free >= held) & (tl.abs(level) <= 20.0), free, 0.0)
            if DUAL:
                limit = -dual * advantage
                over = (advantage < 0.0) & (loss > limit)
                loss = tl.where(over, limit, loss)
                slope = tl.where(over, 0.0, slope)
            slope = slope * weight
            is_low = (ratio < low) & (advantage < 0.0)
            is_high = (ratio > high) & (advantage > 0.0)
        policy += weight * loss
        if ESTIMATOR > 0:
            kl, kl_slope = _kl(_load(ref_ptr, base + t, keep) - logp, ESTIMATOR, CLAMPS)
            kl = tl.where(keep, kl, 0.0)
            kl_term += weight * kl
            kl_sum += kl
        if SHARED_SLOPE:
            slopes += slope
        else:
            if ESTIMATOR > 0:
                slope += kl_coef * weight * kl_slope
            tl.store(grad_ptr + base + t, slope, t < num_tokens)
        ratio_sum += tl.where(keep, ratio, 0.0)
        num_low += is_low.to(tl.float32)
        num_high += is_high.to(tl.float32)
        old_kl += log_ratio

    if SHARED_SLOPE:
        slope_of_all = tl.sum(slopes, 0) * share
        for first in range(0, num_tokens, BLOCK):
            t = first + lanes
            keep = (tl.load(mask_ptr + base + t, t < num_tokens, 0) != 0) & (t < num_tokens)
            slope = tl.where(keep, slope_of_all, 0.0)
            if ESTIMATOR > 0:
                logp = _load(logp_ptr, base + t, keep)
                weight = _load(weights_ptr, base + t, keep)
                kl, kl_slope = _kl(_load(ref_ptr, base + t, keep) - logp, ESTIMATOR, CLAMPS)
                slope += kl_coef * weight * kl_slope
            tl.store(grad_ptr + base + t, slope, t < num_tokens)

    out_ptr = sums_ptr + row * NUM_SUMS
    tl.store(out_ptr, tl.sum(policy, 0))
    tl.store(out_ptr + 1, tl.sum(kl_term, 0))
    tl.store(out_ptr + 2, tl.sum(kl_sum, 0))
    tl.store(out_ptr + 3, tl.sum(ratio_sum, 0))
    tl.store(out_ptr + 4, tl.sum(num_low, 0))
    tl.store(out_ptr + 5, tl.sum(num_high, 0))
    tl.store(out_ptr + 6, tl.sum(old_kl, 0))


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
    """See `torch_rows.policy_rows`."""
    num_rows, num_tokens = logp_BT.shape
    grad_BT = torch.empty(num_rows, num_tokens, dtype=torch.float32, device=logp_BT.device)
    sums_B7 = torch.empty(num_rows, NUM_SUMS, dtype=torch.float32, device=logp_BT.device)
    if num_rows == 0:
        return grad_BT, sums_B7
    inputs = (logp_BT, old_BT, advantages_BT, mask_BT, weights_BT)
    launch(
        policy_loss_kernel,
        (num_rows,),
        *(x.contiguous() for x in inputs),
        None if ref_BT is None else ref_BT.contiguous(),
        grad_BT,
        sums_B7,
        num_tokens,
        1.0 - spec.eps_low,
        1.0 + spec.eps_high,
        spec.dual or 0.0,
        spec.kl_coef,
        OBJECTIVE=OBJECTIVES[spec.objective],
        DUAL=spec.dual is not None,
        SHARED=spec.ratio is not RatioLevel.TOKEN,
        MEAN=spec.ratio in (RatioLevel.SEQUENCE_MEAN, RatioLevel.SEQUENCE_MEAN_TOKEN),
        OWN_SLOPE=spec.ratio is RatioLevel.SEQUENCE_MEAN_TOKEN,
        ESTIMATOR=0 if ref_BT is None else ESTIMATORS[spec.kl_estimator],
        CLAMPS=CLAMPS[spec.kl_clamps],
        NUM_SUMS=NUM_SUMS,
        BLOCK=min(BLOCK_T, triton.next_power_of_2(max(num_tokens, 32))),
        num_warps=NUM_WARPS,
    )
    return grad_BT, sums_B7
