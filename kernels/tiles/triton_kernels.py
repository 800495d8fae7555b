"""Triton kernels for tiles of logits: statistics in one read, and the gradient.

Theory of operation of `row_stats_kernel`. One program owns one row and reads it once, in tiles of
DEPTH by LANES. Each lane keeps its own running (m, s, u); the maximum over DEPTH is taken within a
thread, so that rescaling costs one exponential per DEPTH elements and the loop has no reduction
across threads. That leaves about one exponential per element, and the kernel limited by memory.
Lanes are merged once, at the end. Padding columns are -inf after bias and soft-cap, never before:
the soft-cap would make them finite, and exp(0) is not 0.

Row offsets are 64-bit: row times stride passes 2^31 at 14,134 rows of 151,936.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl

from rewardsvc.kernels.triton_math import LN2, LOG2E, NO_KEY, pack_keys, squash


@triton.jit
def row_stats_kernel(
    z_ptr,
    bias_ptr,
    ids_ptr,
    active_ptr,
    stats_ptr,
    keys_ptr,
    num_columns,
    start,
    stride_row,
    stride_column,
    gain,
    cap,
    scale_over_cap,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK_LANES: tl.constexpr,
):
    """Adds a row of a tile to its running record; see `tiles/base.py` for the record."""
    FLOOR: tl.constexpr = -3.0e38
    row = tl.program_id(0).to(tl.int64)
    if tl.load(active_ptr + row) == 0:
        return
    row_ptr = z_ptr + row * stride_row
    c = gain * LOG2E
    m = tl.full((LANES,), FLOOR, tl.float32)
    s = tl.zeros((LANES,), tl.float32)
    u = tl.zeros((LANES,), tl.float32)
    offsets = tl.arange(0, DEPTH)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    if TOPK > 0:
        k_lanes = tl.arange(0, TOPK_LANES)
        # Lanes past k hold the largest key, which is never the smallest and so never replaced.
        keys = tl.load(keys_ptr + row * TOPK + k_lanes, k_lanes < TOPK, 0x7FFFFFFFFFFFFFFF)
    for first in range(0, num_columns, DEPTH * LANES):
        columns = first + offsets
        inside = columns < num_columns
        y = tl.load(row_ptr + columns.to(tl.int64) * stride_column, inside, 0.0).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(bias_ptr + columns, inside, 0.0).to(tl.float32)
        y = tl.where(inside, squash(y, cap, scale_over_cap, SOFTCAP), float("-inf"))
        new_m = tl.maximum(m, tl.max(y, 0))
        d = (y - new_m[None, :]) * c
        p = tl.exp2(d)
        shift = (m - new_m) * c
        weight = tl.exp2(shift)
        # exp2(-1000) is 0, so the bound changes nothing but keeps 0 * -inf out of u.
        moved = u + tl.maximum(shift, -1000.0) * s
        u = weight * moved + tl.sum(p * tl.maximum(d, -1000.0), 0)
        s = weight * s + tl.sum(p, 0)
        m = new_m
        if TOPK > 0:
            tile_keys = tl.where(inside, pack_keys(y, start + columns), NO_KEY)
            smallest = tl.min(keys, 0)
            best = tl.max(tl.max(tile_keys, 0), 0)
            # Rarely true after the first tiles: k log(V / k) times a row for logits in any order.
            while best > smallest:
                keys = tl.where(keys == smallest, best, keys)
                tile_keys = tl.where(tile_keys == best, NO_KEY, tile_keys)
                smallest = tl.min(keys, 0)
                best = tl.max(tl.max(tile_keys, 0), 0)
    if TOPK > 0:
        tl.store(keys_ptr + row * TOPK + k_lanes, keys, k_lanes < TOPK)

    record_ptr = stats_ptr + row * 4
    old_m = tl.load(record_ptr)
    old_s = tl.load(record_ptr + 1)
    old_u = tl.load(record_ptr + 2) * LOG2E
    row_m = tl.maximum(old_m, tl.max(m, 0))
    shift = (m - row_m) * c
    weight = tl.exp2(shift)
    old_shift = (old_m - row_m) * c
    old_weight = tl.exp2(old_shift)
    lane_u = tl.sum(weight * (u + tl.maximum(shift, -1000.0) * s), 0)
    row_u = old_weight * (old_u + tl.maximum(old_shift, -1000.0) * old_s) + lane_u
    tl.store(record_ptr, row_m)
    tl.store(record_ptr + 1, old_weight * old_s + tl.sum(weight * s, 0))
    tl.store(record_ptr + 2, row_u * LN2)
    at = tl.load(ids_ptr + row) - start
    if (at >= 0) & (at < num_columns):
        t = tl.load(row_ptr + at * stride_column).to(tl.float32)
        if HAS_BIAS:
            t += tl.load(bias_ptr + at).to(tl.float32)
        tl.store(record_ptr + 3, squash(t, cap, scale_over_cap, SOFTCAP))


@triton.jit
def finish_kernel(stats_ptr, out_ptr, num_rows, gain, BLOCK: tl.constexpr):
    """Writes logp, entropy, lse and log s, each [num_rows], of complete records."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    m = tl.load(stats_ptr + rows * 4, inside, 0.0)
    s = tl.load(stats_ptr + rows * 4 + 1, inside, 1.0)
    u = tl.load(stats_ptr + rows * 4 + 2, inside, 0.0)
    t = tl.load(stats_ptr + rows * 4 + 3, inside, 0.0)
    log_s = tl.log2(s) * LN2
    tl.store(out_ptr + rows, (t - m) * gain - log_s, inside)
    tl.store(out_ptr + num_rows + rows, log_s - u / s, inside)
    tl.store(out_ptr + 2 * num_rows + rows, m * gain + log_s, inside)
    tl.store(out_ptr + 3 * num_rows + rows, log_s, inside)


@triton.jit
def grad_kernel(
    z_ptr,
    bias_ptr,
    ids_ptr,
    active_ptr,
    grads_ptr,
    out_ptr,
    num_columns,
    start,
    stride_row,
    stride_column,
    out_stride_row,
    gain,
    cap,
    scale_over_cap,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Writes a block of one row of the gradient; see `grad_tile` in `tiles/eager.py`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    out_ptrs = out_ptr + row * out_stride_row + columns
    if tl.load(active_ptr + row) == 0:
        # Not 0 times the gradient: a row that is left out may hold anything, NaN included.
        tl.store(out_ptrs, tl.zeros((BLOCK,), out_ptr.dtype.element_ty), inside)
        return
    record_ptr = grads_ptr + row * 6
    m = tl.load(record_ptr)
    log_s = tl.load(record_ptr + 1)
    entropy = tl.load(record_ptr + 2)
    d_logp = tl.load(record_ptr + 3)
    d_entropy = tl.load(record_ptr + 4)
    d_lse = tl.load(record_ptr + 5)
    offsets = row * stride_row + columns.to(tl.int64) * stride_column
    y = tl.load(z_ptr + offsets, inside, 0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + columns, inside, 0.0).to(tl.float32)
    slope = gain
    if SOFTCAP:
        tanh_y = squash(y, 1.0, scale_over_cap, True)
        y = cap * tanh_y
        slope = gain * (1.0 - tanh_y * tanh_y) * (scale_over_cap * cap)
    log_p = (y - m) * gain - log_s
    p = tl.exp2(log_p * LOG2E)
    spread = p * (d_lse - d_logp - d_entropy * (log_p + entropy))
    # p = 0 comes with log p = -inf; a NaN must pass, so the test is for 0.
    spread = tl.where(p == 0.0, 0.0, spread)
    at = tl.load(ids_ptr + row) - start
    grad = (spread + tl.where(columns == at, d_logp, 0.0)) * slope
    tl.store(out_ptrs, grad.to(out_ptr.dtype.element_ty), inside)
