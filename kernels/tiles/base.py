"""Tile operations: all that the log-prob functions do with a block of logits.

A tile `z_RW` is R rows by W columns of raw logits, columns `[start, start + W)` of the vocabulary.
Rows carry small records, so that any block of rows is one contiguous slice:

* `stats_N4`, running statistics over the columns seen so far, `(m, s, u, t)`:
  m = max y,  s = sum exp(d),  u = sum exp(d) * d,  t = y at the row's id,  with d = (y - m) * gain.
  Then log-sum-exp is gain*m + log s, log-prob is (t - m)*gain - log s, entropy is log s - u/s.
  u is kept relative to m, so nothing cancels when logits are shifted.
* `grads_N6`, what the backward pass needs, `(m, log s, entropy, d logp, d entropy, d lse)`.

m starts at a finite floor and not at -inf: two floors subtract to 0 and not to NaN, so that a tile
of nothing but -inf leaves the record as it was. Not at 0 either: that overflows at logits of -200.

A row's result depends on no other row: each implementation reduces along columns in an order that
depends on the shape of the tile alone, and callers keep tile shapes independent of N.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rewardsvc.kernels.transform import LogitTransform

M, S, U, T = range(4)
G_M, G_LOG_S, G_ENTROPY, D_LOGP, D_ENTROPY, D_LSE = range(6)

FLOOR = -3.0e38
"""Where the running maximum starts: finite, and below any logit that has weight."""


class TileOps(Protocol):
    """One implementation of the tile operations.

    Attributes:
        row_tile: R is always a multiple of this; 1 where any R does.
    """

    row_tile: int

    def accumulate(
        self,
        z_RW: Tensor,
        ids_R: Tensor,
        stats_R4: Tensor,
        transform: LogitTransform,
        *,
        bias_W: Tensor | None,
        keys_RK: Tensor | None,
        active_R: Tensor,
        start: int,
    ) -> None:
        """Adds a tile to the running statistics, and to the running top-k keys, in place.

        Args:
            z_RW: Raw logits, any strides.
            ids_R: int64, ids in the whole vocabulary; one outside of this tile hits nothing.
            stats_R4: Running statistics, contiguous.
            transform: From raw to final logits.
            bias_W: Added to the raw logits.
            keys_RK: int64 running keys, in any order; see `topk.py`.
            active_R: bool, rows that count; the others may be skipped.
            start: The id of the tile's first column.
        """

    def finish(self, stats_N4: Tensor, gain: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """logp, entropy, lse and log s, each [N], of complete statistics."""

    def grad(
        self,
        z_RW: Tensor,
        ids_R: Tensor,
        grads_R6: Tensor,
        transform: LogitTransform,
        *,
        bias_W: Tensor | None,
        active_R: Tensor,
        start: int,
        out_RW: Tensor | None,
    ) -> None:
        """Writes the gradient with respect to the raw logits; zeros in rows that are not active.

        Into `out_RW`, contiguous; None overwrites `z_RW`, which must then be contiguous.
        """


def new_stats(num_rows: int, like: Tensor) -> Tensor:
    """Empty running statistics [N, 4] on the device of `like`, in its accumulation dtype."""
    stats_N4 = torch.zeros(num_rows, 4, dtype=accumulation_dtype(like.dtype), device=like.device)
    stats_N4[:, M] = FLOOR
    return stats_N4


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over inputs of `dtype` are kept in: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def merge_stats(stats_SN4: Tensor, gain: float) -> Tensor:
    """Merges statistics of S disjoint parts of the vocabulary into one record a row.

    Part after part: a sum over S would add in an order that depends on N. t is summed: it is 0 in
    every part but the one that holds the id.
    """
    m_N, s_N, u_N, t_N = stats_SN4[0].unbind(-1)
    for part_N4 in stats_SN4[1:]:
        part_m_N, part_s_N, part_u_N, part_t_N = part_N4.unbind(-1)
        new_m_N = torch.maximum(m_N, part_m_N)
        s_N, u_N = rescale(m_N, s_N, u_N, new_m_N, gain=gain)
        part_s_N, part_u_N = rescale(part_m_N, part_s_N, part_u_N, new_m_N, gain=gain)
        m_N, s_N, u_N, t_N = new_m_N, s_N + part_s_N, u_N + part_u_N, t_N + part_t_N
    return torch.stack((m_N, s_N, u_N, t_N), -1)


def rescale(
    m_N: Tensor, s_N: Tensor, u_N: Tensor, new_m_N: Tensor, *, gain: float | Tensor
) -> tuple[Tensor, Tensor]:
    """s and u of records relative to another maximum, at least as large as their own."""
    shift_N = (m_N - new_m_N) * gain
    weight_N = torch.exp(shift_N)
    # Without weight the shift may be -inf, and 0 * -inf is NaN.
    moved_N = u_N + torch.where(s_N > 0, shift_N * s_N, 0.0)
    return weight_N * s_N, torch.where(weight_N > 0, weight_N * moved_N, 0.0)


def finish_stats(stats_N4: Tensor, gain: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, entropy, lse and log s [N] of complete statistics."""
    m_N, s_N, u_N, t_N = stats_N4.unbind(-1)
    log_s_N = torch.log(s_N)
    return (t_N - m_N) * gain - log_s_N, log_s_N - u_N / s_N, m_N * gain + log_s_N, log_s_N
