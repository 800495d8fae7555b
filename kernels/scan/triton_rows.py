"""The recurrences in Triton.

Theory of operation. A program owns a row and walks it in blocks. Within a block the recurrence
y = b + a * y_next is an associative scan over pairs (a, b); between blocks one number is carried.
Masked positions are the identity (1, 0). GAE also needs the value at the next kept position, which
is a scan of its own over the positions one later: of two, the nearer wins if it is kept.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rewardsvc.kernels.triton_math import launch

BLOCK_T = 1024
NUM_WARPS = 4


@triton.jit
def _affine(a1, b1, a2, b2):
    return a1 * a2, b2 + a2 * b1


@triton.jit
def _nearest(kept1, value1, kept2, value2):
    return tl.where(kept2 > 0.0, 1.0, kept1), tl.where(kept2 > 0.0, value2, value1)


@triton.jit
def discounted_scan_kernel(
    x_ptr,
    mask_ptr,
    initial_ptr,
    out_ptr,
    num_tokens,
    discount,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of `discounted_scan_rows`."""
    row = tl.program_id(0).to(tl.int64)
    base = row * num_tokens
    lanes = tl.arange(0, BLOCK)
    carry = tl.load(initial_ptr + row).to(tl.float32)
    num_blocks = tl.cdiv(num_tokens, BLOCK)
    for i in range(0, num_blocks):
        t = i * BLOCK + lanes
        if REVERSE:
            t = num_tokens - 1 - t
        inside = (t >= 0) & (t < num_tokens)
        keep = (tl.load(mask_ptr + base + t, inside, 0) != 0) & inside
        x = tl.load(x_ptr + base + t, keep, 0.0).to(tl.float32)
        a, b = tl.associative_scan((tl.where(keep, discount, 1.0), x), 0, _affine)
        y = b + a * carry
        tl.store(out_ptr + base + t, tl.where(keep, y, 0.0), inside)
        carry = tl.sum(tl.where(lanes == BLOCK - 1, y, 0.0), 0)


@triton.jit
def gae_kernel(
    rewards_ptr,
    values_ptr,
    mask_ptr,
    last_values_ptr,
    advantages_ptr,
    returns_ptr,
    num_tokens,
    gamma,
    lam,
    BLOCK: tl.constexpr,
):
    """One row of `gae_rows`."""
    row = tl.program_id(0).to(tl.int64)
    base = row * num_tokens
    lanes = tl.arange(0, BLOCK)
    next_value = tl.load(last_values_ptr + row).to(tl.float32)
    carry = 0.0
    num_blocks = tl.cdiv(num_tokens, BLOCK)
    for i in range(0, num_blocks):
        # Backwards in time, so that scans run forwards.
        t = num_tokens - 1 - (i * BLOCK + lanes)
        inside = t >= 0
        keep = (tl.load(mask_ptr + base + t, inside, 0) != 0) & inside
        reward = tl.load(rewards_ptr + base + t, keep, 0.0).to(tl.float32)
        value = tl.load(values_ptr + base + t, keep, 0.0).to(tl.float32)
        after = inside & (t + 1 < num_tokens)
        kept_after = (tl.load(mask_ptr + base + t + 1, after, 0) != 0) & after
        value_after = tl.load(values_ptr + base + t + 1, kept_after, 0.0).to(tl.float32)
        found, following = tl.associative_scan(
            (kept_after.to(tl.float32), value_after), 0, _nearest
        )
        following = tl.where(found > 0.0, following, next_value)
        delta = tl.where(keep, reward + gamma * following - value, 0.0)
        a, b = tl.associative_scan((tl.where(keep, gamma * lam, 1.0), delta), 0, _affine)
        advantage = b + a * carry
        tl.store(advantages_ptr + base + t, tl.where(keep, advantage, 0.0), inside)
        tl.store(returns_ptr + base + t, tl.where(keep, advantage + value, 0.0), inside)
        is_last = lanes == BLOCK - 1
        carry = tl.sum(tl.where(is_last, advantage, 0.0), 0)
        next_value = tl.sum(tl.where(is_last, following, 0.0), 0)


def _block(num_tokens: int) -> int:
    return min(BLOCK_T, int(triton.next_power_of_2(max(num_tokens, 32))))


def discounted_scan_rows(
    x_BT: Tensor, mask_BT: Tensor, initial_B: Tensor, *, discount: float, reverse: bool
) -> Tensor:
    """See `torch_rows.discounted_scan_rows`."""
    num_rows, num_tokens = x_BT.shape
    out_BT = torch.empty(num_rows, num_tokens, dtype=torch.float32, device=x_BT.device)
    if num_rows and num_tokens:
        launch(
            discounted_scan_kernel,
            (num_rows,),
            x_BT.contiguous(),
            mask_BT.contiguous(),
            initial_B.contiguous(),
            out_BT,
            num_tokens,
            discount,
            REVERSE=reverse,
            BLOCK=_block(num_tokens),
            num_warps=NUM_WARPS,
        )
    return out_BT


def gae_rows(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    last_values_B: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """See `torch_rows.gae_rows`; without gradients."""
    num_rows, num_tokens = values_BT.shape
    advantages_BT = torch.empty(num_rows, num_tokens, dtype=torch.float32, device=values_BT.device)
    returns_BT = torch.empty_like(advantages_BT)
    if num_rows and num_tokens:
        launch(
            gae_kernel,
            (num_rows,),
            rewards_BT.contiguous(),
            values_BT.contiguous(),
            mask_BT.contiguous(),
            last_values_B.contiguous(),
            advantages_BT,
            returns_BT,
            num_tokens,
            gamma,
            lam,
            BLOCK=_block(num_tokens),
            num_warps=NUM_WARPS,
        )
    return advantages_BT, returns_BT
