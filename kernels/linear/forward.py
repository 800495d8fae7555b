"""Forward pass: blocks of logits into one buffer that is used again and again.

The vocabulary is the outer loop: a block of the weight is read from memory and packed for the
product once, and all tokens meet it while it is in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc.kernels.linear.plan import Plan
from rewardsvc.kernels.linear.products import BlockProducts
from rewardsvc.kernels.tiles.base import TileOps
from rewardsvc.kernels.tiles.rows import RowRecords, round_up
from rewardsvc.kernels.transform import LogitTransform

# N rows (tokens), H hidden, V vocabulary of this process, R and W rows and columns of a block.

ALIGNMENT = 64
"""Bytes: a cache line, and at least what any library asks of an address."""


def read_block(hidden_NH: Tensor, first_row: int, spare_RH: Tensor) -> tuple[Tensor, int]:
    """Rows `first_row` on, zeros after the last; and how many there were.

    A view where it can be one; otherwise a copy in `spare_RH`. Both are contiguous, whole and
    aligned alike: libraries may choose their algorithm by any of these.
    """
    num_rows = len(spare_RH)
    rows_NH = hidden_NH[first_row : first_row + num_rows]
    aligned = rows_NH.data_ptr() % ALIGNMENT == 0
    if aligned and rows_NH.is_contiguous() and len(rows_NH) == num_rows:
        return rows_NH, num_rows
    spare_RH[: len(rows_NH)] = rows_NH
    spare_RH[len(rows_NH) :] = 0
    return spare_RH, len(rows_NH)


def accumulate_linear(
    records: RowRecords,
    hidden_NH: Tensor,
    weight_VH: Tensor,
    transform: LogitTransform,
    *,
    bias_V: Tensor | None,
    start: int,
    ops: TileOps,
    plan: Plan,
    keep: bool,
) -> list[Tensor]:
    """Adds the logits `hidden @ weight.T + bias` to the records, block by block.

    Args:
        records: Padded to a multiple of `plan.rows`.
        hidden_NH: Hidden states.
        weight_VH: The head's weight, or this process's part of it.
        transform: From raw to final logits.
        bias_V: The head's bias.
        start: Id of the weight's first row.
        ops: What reads the blocks.
        plan: Block sizes.
        keep: Whether there will be a backward pass.

    Returns:
        The first blocks [R, W] of raw logits in the order of this loop, as many as the plan keeps.
    """
    vocab_size, hidden_size = weight_VH.shape
    spare_RH = hidden_NH.new_empty(plan.rows, hidden_size)
    buffer = hidden_NH.new_empty(plan.rows * plan.columns)
    num_kept = plan.num_kept if keep else 0
    kept: list[Tensor] = []
    for v in range(0, vocab_size, plan.columns):
        columns = slice(v, min(v + plan.columns, vocab_size))
        width = columns.stop - v
        products = BlockProducts(weight_VH[columns], plan.rows)
        for first_row in range(0, len(hidden_NH), plan.rows):
            hidden_RH, num_real = read_block(hidden_NH, first_row, spare_RH)
            keeps = len(kept) < num_kept
            own = torch.empty_like(buffer[: plan.rows * width]) if keeps else buffer
            z_RW = products.logits(hidden_RH, own[: plan.rows * width].view(plan.rows, width))
            # The product needs all rows; what reads it, only the tiles that hold real ones.
            num_read = round_up(num_real, ops.row_tile)
            records.accumulate(
                ops,
                z_RW[:num_read],
                transform,
                first_row=first_row,
                bias_W=None if bias_V is None else bias_V[columns],
                start=start + v,
            )
            if keeps:
                kept.append(z_RW)
    return kept
