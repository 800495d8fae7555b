"""Backward pass: logits are computed again, by block of the vocabulary, but for those kept.

By vocabulary and not by token: the rows of `d weight` that belong to a block are complete once all
tokens have passed, so they are written once, and nothing of the size of the weight is accumulated
in the weight's dtype. `d hidden` is summed over blocks in float32. No atomics, one order: the same
bits in every run, and `d hidden` of a token does not depend on the others. A block that the forward
pass kept is what the same product would give again, to the bit: how many are kept changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardsvc.kernels.linear.forward import read_block
from rewardsvc.kernels.linear.plan import Plan
from rewardsvc.kernels.linear.products import BlockProducts
from rewardsvc.kernels.tiles.base import TileOps, accumulation_dtype
from rewardsvc.kernels.tiles.rows import pad_rows, round_up
from rewardsvc.kernels.transform import LogitTransform

# N rows (tokens), H hidden, V vocabulary of this process, R and W rows and columns of a block,
# Q rows of a panel.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearGrads:
    """Gradients; None where not wanted.

    Attributes:
        hidden: [N, H], in the accumulation dtype: parts of other processes may be added to it.
        weight: [V, H], in the weight's dtype.
        bias: [V], in the bias's dtype.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def linear_grads(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    transform: LogitTransform,
    *,
    ids_N: Tensor,
    grads_N6: Tensor,
    wanted: tuple[bool, bool, bool],
    start: int,
    ops: TileOps,
    plan: Plan,
    kept: Sequence[Tensor],
    exact: bool,
) -> LinearGrads:
    """Gradients of hidden, weight and bias, those that are `wanted`; arguments as in forward.

    `kept` are the blocks that the forward pass returned; they are read and not written.
    With `exact`, logits are computed again in float32, as the fused forward pass has them: next to
    its log-sum-exp, logits rounded to bfloat16 would give probabilities that do not sum to 1.
    """
    num_rows, hidden_size = hidden_NH.shape
    accumulate = accumulation_dtype(hidden_NH.dtype)
    want_hidden, want_weight, want_bias = wanted
    num_padded = round_up(num_rows, plan.rows)
    ids_P, grads_P6 = pad_rows(ids_N, num_padded), pad_rows(grads_N6, num_padded)
    active_P = pad_rows(torch.ones_like(ids_N, dtype=torch.bool), num_padded)
    d_hidden = hidden_NH.new_zeros(num_rows, hidden_size, dtype=accumulate) if want_hidden else None
    d_weight = torch.zeros_like(weight_VH) if want_weight else None
    d_bias = torch.zeros_like(bias_V) if want_bias and bias_V is not None else None
    spare_RH = hidden_NH.new_empty(plan.rows, hidden_size)
    panel_rows = max(plan.rows, min(plan.panel_rows, num_padded))
    buffer = hidden_NH.new_empty(panel_rows * plan.grad_columns)
    num_row_blocks = num_padded // plan.rows

    for v in range(0, len(weight_VH), plan.grad_columns):
        columns = slice(v, min(v + plan.grad_columns, len(weight_VH)))
        width = columns.stop - v
        products = BlockProducts(weight_VH[columns], plan.rows)
        d_weight_WH = _Sum(accumulate)
        d_bias_W = _Sum(accumulate)
        for panel in range(0, num_rows, panel_rows):
            g_QW = buffer[: panel_rows * width].view(panel_rows, width)
            for a in range(panel, min(panel + panel_rows, num_padded), plan.rows):
                g_RW = g_QW[a - panel : a - panel + plan.rows]
                num_real = min(plan.rows, num_rows - a)
                block = v // plan.grad_columns * num_row_blocks + a // plan.rows
                if block < len(kept):
                    z_RW = kept[block]
                else:
                    hidden_RH, _ = read_block(hidden_NH, a, spare_RH)
                    z_RW = (
                        products.logits_float32(hidden_RH)
                        if exact
                        else products.logits(hidden_RH, g_RW)
                    )
                # The products need all rows; what lies between, only the tiles that hold real ones.
                num_read = round_up(num_real, ops.row_tile)
                rows = slice(a, a + num_read)
                in_place = z_RW.data_ptr() == g_RW.data_ptr()
                ops.grad(
                    z_RW[:num_read],
                    ids_P[rows],
                    grads_P6[rows],
                    transform,
                    bias_W=None if bias_V is None else bias_V[columns],
                    active_R=active_P[rows],
                    start=start + v,
                    out_RW=None if in_place else g_RW[:num_read],
                )
                if d_hidden is not None:
                    # Rows past the tiles that were read hold what the buffer held: they reach
                    # no row but their own, and are cut off here and below.
                    d_hidden[a : a + num_real] += products.d_hidden(g_RW)[:num_real]
            hidden_QH = hidden_NH[panel : panel + panel_rows]
            g_QW = g_QW[: len(hidden_QH)]
            if d_weight is not None:
                d_weight_WH.add(products.d_weight(g_QW, hidden_QH))
            if d_bias is not None:
                d_bias_W.add(g_QW.sum(0, dtype=accumulate))
        if d_weight is not None and d_weight_WH.value is not None:
            d_weight[columns] = d_weight_WH.value
        if d_bias is not None and d_bias_W.value is not None:
            d_bias[columns] = d_bias_W.value
    return LinearGrads(hidden=d_hidden, weight=d_weight, bias=d_bias)


class _Sum:
    """A sum that is kept in the accumulation dtype from its second term on."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.value: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """Adds a term that may not be used afterwards."""
        self.value = term if self.value is None else self.value.to(self._dtype).add_(term)
