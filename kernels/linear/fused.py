"""The forward pass in one Triton kernel, for tight memory: logits live in registers alone.

Theory of operation. A program owns BLOCK_M rows and one part of the vocabulary. It multiplies
block after block of that part, in float32 accumulators, and adds each to its running (m, s, u, t)
as in `tiles/triton_kernels.py`. Parts are merged afterwards, in order. How many parts there are
depends on the vocabulary alone: with more of them for fewer rows, small batches would run faster,
and a row would depend on the size of its batch.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rewardsvc.kernels.dispatch import interpreting
from rewardsvc.kernels.tiles.base import merge_stats
from rewardsvc.kernels.tiles.rows import RowRecords
from rewardsvc.kernels.transform import LogitTransform
from rewardsvc.kernels.triton_math import LN2, LOG2E, launch, squash

# N rows (tokens), H hidden, V vocabulary of this process, S parts of it.

MAX_PARTS = 8


@triton.jit
def fused_linear_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    ids_ptr,
    stats_ptr,
    part_rows,
    num_rows,
    num_columns,
    hidden_size,
    part_columns,
    start,
    stride_hidden_row,
    stride_hidden,
    stride_weight_row,
    stride_weight,
    gain,
    cap,
    scale_over_cap,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Writes the records of BLOCK_M rows over one part of the vocabulary to stats [S, P, 4]."""
    FLOOR: tl.constexpr = -3.0e38
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    ks = tl.arange(0, BLOCK_K)
    c = gain * LOG2E
    # Rows and columns past the end read the last one again; their results are dropped below.
    safe_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)
    at = tl.load(ids_ptr + safe_rows) - start
    m = tl.full((BLOCK_M,), FLOOR, tl.float32)
    s = tl.zeros((BLOCK_M,), tl.float32)
    u = tl.zeros((BLOCK_M,), tl.float32)
    t = tl.zeros((BLOCK_M,), tl.float32)
    hidden_ptrs = hidden_ptr + safe_rows[:, None] * stride_hidden_row
    first = part * part_columns
    last = tl.minimum(first + part_columns, num_columns)
    for v in range(first, last, BLOCK_N):
        columns = v + tl.arange(0, BLOCK_N)
        inside = columns < last
        safe_columns = tl.minimum(columns, num_columns - 1).to(tl.int64)
        weight_ptrs = weight_ptr + safe_columns[None, :] * stride_weight_row
        y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, hidden_size, BLOCK_K):
            k_inside = k + ks < hidden_size
            x = tl.load(hidden_ptrs + (k + ks)[None, :] * stride_hidden, k_inside[None, :], 0.0)
            w = tl.load(weight_ptrs + (k + ks)[:, None] * stride_weight, k_inside[:, None], 0.0)
            if UPCAST:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            y = tl.dot(x, w, y, input_precision="ieee")
        if HAS_BIAS:
            y += tl.load(bias_ptr + safe_columns).to(tl.float32)[None, :]
        y = tl.where(inside[None, :], squash(y, cap, scale_over_cap, SOFTCAP), float("-inf"))
        hit = columns[None, :] == at[:, None]
        t += tl.sum(tl.where(hit & inside[None, :], y, 0.0), 1)
        new_m = tl.maximum(m, tl.max(y, 1))
        d = (y - new_m[:, None]) * c
        p = tl.exp2(d)
        shift = (m - new_m) * c
        weight = tl.exp2(shift)
        moved = u + tl.maximum(shift, -1000.0) * s
        u = weight * moved + tl.sum(p * tl.maximum(d, -1000.0), 1)
        s = weight * s + tl.sum(p, 1)
        m = new_m
    record_ptrs = stats_ptr + (part.to(tl.int64) * part_rows + rows) * 4
    real = rows < num_rows
    tl.store(record_ptrs, m, real)
    tl.store(record_ptrs + 1, s, real)
    tl.store(record_ptrs + 2, u * LN2, real)
    tl.store(record_ptrs + 3, t, real)


def fused_blocks(dtype: torch.dtype) -> dict[str, int]:
    """Block sizes and launch settings: float32 products run without tensor cores, on less."""
    if dtype == torch.float32:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}


def accumulate_fused(
    records: RowRecords,
    hidden_NH: Tensor,
    weight_VH: Tensor,
    transform: LogitTransform,
    *,
    bias_V: Tensor | None,
    start: int,
) -> None:
    """Writes the records of `hidden @ weight.T + bias`; arguments as in `accumulate_linear`."""
    num_rows, hidden_size = hidden_NH.shape
    if num_rows == 0:
        return
    vocab_size = len(weight_VH)
    blocks = fused_blocks(hidden_NH.dtype)
    num_blocks = triton.cdiv(vocab_size, blocks["BLOCK_N"])
    part_columns = triton.cdiv(num_blocks, MAX_PARTS) * blocks["BLOCK_N"]
    num_parts = triton.cdiv(vocab_size, part_columns)
    num_padded = len(records.stats_P4)
    stats_SP4 = hidden_NH.new_zeros(num_parts, num_padded, 4, dtype=torch.float32)
    launch(
        fused_linear_kernel,
        (triton.cdiv(num_rows, blocks["BLOCK_M"]), num_parts),
        hidden_NH,
        weight_VH,
        bias_V,
        records.ids_P,
        stats_SP4,
        num_padded,
        num_rows,
        vocab_size,
        hidden_size,
        part_columns,
        start,
        *hidden_NH.stride(),
        *weight_VH.stride(),
        transform.gain,
        transform.softcap or 0.0,
        transform.logit_scale / transform.softcap if transform.softcap is not None else 0.0,
        HAS_BIAS=bias_V is not None,
        SOFTCAP=transform.softcap is not None,
        # The interpreter multiplies bfloat16 wrongly.
        UPCAST=interpreting(),
        **blocks,
    )
    records.stats_P4.copy_(merge_stats(stats_SP4, transform.gain))
