"""Forward pass: blocks of logits into one buffer that is used again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc.kernels.linear.plan import Plan
from rewardsvc.kernels.tiles.base import TileOps
from rewardsvc.kernels.tiles.rows import RowRecords, round_up
from rewardsvc.kernels.transform import LogitTransform

# N rows (tokens), H hidden, V vocabulary of this process, R and W rows and columns of a block.


def copy_block(hidden_NH: Tensor, first_row: int, block_RH: Tensor) -> int:
    """Copies rows `first_row` on into a block, zeros after the last; returns how many there were.

    A copy and not a view: besides the padding, every product then reads from the same address, and
    libraries may choose their algorithm by alignment.
    """
    rows_NH = hidden_NH[first_row : first_row + len(block_RH)]
    block_RH[: len(rows_NH)] = rows_NH
    block_RH[len(rows_NH) :] = 0
    return len(rows_NH)


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
) -> None:
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
    """
    vocab_size, hidden_size = weight_VH.shape
    block_RH = hidden_NH.new_empty(plan.rows, hidden_size)
    buffer = hidden_NH.new_empty(plan.rows * plan.columns)
    for first_row in range(0, len(hidden_NH), plan.rows):
        num_real = copy_block(hidden_NH, first_row, block_RH)
        # The product needs all rows; what reads it, only the tiles that hold real ones.
        num_read = round_up(num_real, ops.row_tile)
        for v in range(0, vocab_size, plan.columns):
            columns = slice(v, min(v + plan.columns, vocab_size))
            width = columns.stop - v
            z_RW = buffer[: plan.rows * width].view(plan.rows, width)
            torch.mm(block_RH, weight_VH[columns].t(), out=z_RW)
            records.accumulate(
                ops,
                z_RW[:num_read],
                transform,
                first_row=first_row,
                bias_W=None if bias_V is None else bias_V[columns],
                start=start + v,
            )
