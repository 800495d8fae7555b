"""The records of N rows, from the first tile to the outputs and to the backward pass.

Tile operations take rows in multiples of a fixed number, so that a row is computed at the same tile
shape however many rows there are. Records are padded to that multiple; padding rows are not active.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewardsvc.kernels.tiles.base import M, TileOps, new_stats
from rewardsvc.kernels.tiles.topk import largest_keys, new_keys, unpack_keys
from rewardsvc.kernels.transform import LogitTransform
from rewardsvc.kernels.types import TokenStats, TopK


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple


def pad_rows(rows: Tensor, num_rows: int) -> Tensor:
    """`rows` followed by zeros, `num_rows` in all; itself if it has that many."""
    if len(rows) == num_rows:
        return rows
    padded = rows.new_zeros(num_rows, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """Outputs of N rows.

    Attributes:
        outputs: logp, entropy, lse [N], top-k log-probs and ids [N, K]; zeros in rows that do not
            count.
        saved: [3, N]: m, log s and entropy, for the backward pass.
    """

    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    saved: Tensor


class RowRecords:
    """Running records of N rows, padded to P, a multiple of what the tiles need.

    Attributes:
        num_rows: N.
        ids_P: int64, ids in the whole vocabulary.
        active_P: bool, rows that count.
        stats_P4: Running statistics; see `base.py`.
        keys_PK: Running top-k keys; None without top-k.
    """

    def __init__(
        self, ids_N: Tensor, active_N: Tensor, like: Tensor, *, topk: int, multiple: int
    ) -> None:
        self.num_rows = len(ids_N)
        num_padded = round_up(self.num_rows, multiple)
        self.ids_P = pad_rows(ids_N, num_padded)
        self.active_P = pad_rows(active_N, num_padded)
        self.stats_P4 = new_stats(num_padded, like)
        self.keys_PK = new_keys(num_padded, topk, like.device) if topk else None

    def accumulate(
        self,
        ops: TileOps,
        z_RW: Tensor,
        transform: LogitTransform,
        *,
        first_row: int,
        bias_W: Tensor | None = None,
        start: int = 0,
    ) -> None:
        """Adds a tile of raw logits, of rows `first_row` on and columns `start` on."""
        rows = slice(first_row, first_row + len(z_RW))
        ops.accumulate(
            z_RW,
            self.ids_P[rows],
            self.stats_P4[rows],
            transform,
            bias_W=bias_W,
            keys_RK=None if self.keys_PK is None else self.keys_PK[rows],
            active_R=self.active_P[rows],
            start=start,
        )

    def finish(self, ops: TileOps, gain: float) -> Finished:
        """The outputs of complete records."""
        num_rows = self.num_rows
        active_N = self.active_P[:num_rows]
        # With the padding: a vector of one and a vector of many may take different code.
        finished = ops.finish(self.stats_P4, gain)
        logp_N, entropy_N, lse_N, log_s_N = (x_P[:num_rows] for x_P in finished)
        m_N = self.stats_P4[:num_rows, M]
        logp_NK = logp_N.new_empty(num_rows, 0)
        ids_NK = self.ids_P.new_empty(num_rows, 0)
        if self.keys_PK is not None:
            keys_NK = largest_keys(self.keys_PK[:num_rows], self.keys_PK.shape[1])
            y_NK, ids_NK = unpack_keys(keys_NK)
            logp_NK = (y_NK - m_N[:, None]) * gain - log_s_N[:, None]
            logp_NK = logp_NK.where(active_N[:, None], 0.0)
            ids_NK = ids_NK.where(active_N[:, None], 0)
        return Finished(
            outputs=(
                logp_N.where(active_N, 0.0),
                entropy_N.where(active_N, 0.0),
                lse_N.where(active_N, 0.0),
                logp_NK,
                ids_NK,
            ),
            saved=torch.stack((m_N, log_s_N, entropy_N)),
        )


def backward_records(saved_3N: Tensor, grads: tuple[Tensor | None, ...]) -> Tensor:
    """`grads_N6` of `base.py`.

    Args:
        saved_3N: From `Finished`.
        grads: Gradients of logp, entropy and lse [N]; None for zeros.
    """
    zeros_N = torch.zeros_like(saved_3N[0])
    upstream = [zeros_N if g is None else g.to(saved_3N.dtype) for g in grads]
    return torch.stack((*saved_3N.unbind(0), *upstream), 1)


def token_stats(
    outputs: tuple[Tensor, ...], shape: torch.Size, *, entropy: bool, topk: int
) -> TokenStats:
    """The outputs of an autograd function, in the shape of the ids."""
    logp_N, entropy_N, lse_N, topk_logp_NK, topk_ids_NK = outputs
    best = TopK(logp=topk_logp_NK.reshape(*shape, topk), ids=topk_ids_NK.reshape(*shape, topk))
    return TokenStats(
        logp=logp_N.reshape(shape),
        entropy=entropy_N.reshape(shape) if entropy else None,
        lse=lse_N.reshape(shape),
        topk=best if topk else None,
    )
