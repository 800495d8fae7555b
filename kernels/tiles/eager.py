"""Tile operations in plain torch, small enough that their temporaries stay in the cache.

`accumulate_tile` and `grad_tile` are also what `compiled.py` compiles: they take their numbers as
0-dimensional tensors, since a Python float would be compiled in and compiled again when it changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rewardsvc.kernels.tiles.base import (
    D_ENTROPY,
    D_LOGP,
    D_LSE,
    G_ENTROPY,
    G_LOG_S,
    G_M,
    M,
    S,
    T,
    U,
    accumulation_dtype,
    finish_stats,
    rescale,
)
from rewardsvc.kernels.tiles.topk import largest_keys, pack_keys
from rewardsvc.kernels.transform import LogitTransform


def _values(
    z_RW: Tensor, bias_W: Tensor | None, squash: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """y of `transform.py`, and the tanh in it, in the accumulation dtype."""
    y_RW = z_RW.to(accumulation_dtype(z_RW.dtype))
    if bias_W is not None:
        y_RW = y_RW + bias_W.to(y_RW.dtype)
    if squash is None:
        return y_RW, None
    cap, scale = squash
    tanh_RW = torch.tanh(y_RW * (scale / cap))
    return cap * tanh_RW, tanh_RW


def accumulate_tile(
    z_RW: Tensor,
    ids_R: Tensor,
    stats_R4: Tensor,
    *,
    gain: Tensor,
    squash: tuple[Tensor, Tensor] | None,
    bias_W: Tensor | None,
) -> None:
    """`TileOps.accumulate` with ids relative to the tile, and without keys."""
    y_RW, _ = _values(z_RW, bias_W, squash)
    m_R, s_R, u_R, t_R = stats_R4[:, M], stats_R4[:, S], stats_R4[:, U], stats_R4[:, T]
    new_m_R = torch.maximum(m_R, y_RW.amax(1))
    d_RW = (y_RW - new_m_R[:, None]) * gain
    e_RW = torch.exp(d_RW)
    # 0 * -inf is NaN: columns without weight add nothing to u.
    # Summed in float64: next to a weight of 1, float32 swallows 1e5 weights of 1e-8, and their sum
    # is what the tolerance is about. It costs a fifth more than float32, next to the exponential.
    # u is summed whether an entropy is wanted or not: without, it is no faster.
    tile_u_R = torch.where(e_RW > 0, e_RW * d_RW, 0.0).sum(1, dtype=torch.float64)
    tile_s_R = e_RW.sum(1, dtype=torch.float64)
    old_s_R, old_u_R = rescale(m_R, s_R, u_R, new_m_R, gain=gain)
    new_s_R = old_s_R + tile_s_R.to(s_R.dtype)
    new_u_R = old_u_R + tile_u_R.to(u_R.dtype)
    hit_R = (ids_R >= 0) & (ids_R < z_RW.shape[1])
    at_R1 = torch.where(hit_R, ids_R, 0)[:, None]
    new_t_R = torch.where(hit_R, y_RW.gather(1, at_R1)[:, 0], t_R)
    stats_R4.copy_(torch.stack((new_m_R, new_s_R, new_u_R, new_t_R), 1))


def grad_tile(
    z_RW: Tensor,
    ids_R: Tensor,
    grads_R6: Tensor,
    *,
    gain: Tensor,
    squash: tuple[Tensor, Tensor] | None,
    bias_W: Tensor | None,
    active_R: Tensor,
    out_RW: Tensor | None,
) -> None:
    """`TileOps.grad` with ids relative to the tile.

    With p the softmax of the final logits l, and H its entropy:
    d logp/d l_v = [v = id] - p_v,  d H/d l_v = -p_v (log p_v + H),  d lse/d l_v = p_v.
    """
    y_RW, tanh_RW = _values(z_RW, bias_W, squash)
    g_R1 = grads_R6[:, :, None]
    log_p_RW = (y_RW - g_R1[:, G_M]) * gain - g_R1[:, G_LOG_S]
    p_RW = torch.exp(log_p_RW)
    d_entropy_RW = g_R1[:, D_ENTROPY] * (log_p_RW + g_R1[:, G_ENTROPY])
    spread_RW = p_RW * (g_R1[:, D_LSE] - g_R1[:, D_LOGP] - d_entropy_RW)
    # p = 0 comes with log p = -inf; NaN must pass, so the test is for 0 and not for p > 0.
    spread_RW = torch.where(p_RW == 0, 0.0, spread_RW)
    columns_W = torch.arange(z_RW.shape[1], device=z_RW.device)
    hit_RW = columns_W == ids_R[:, None]
    grad_RW = (spread_RW + torch.where(hit_RW, g_R1[:, D_LOGP], 0.0)) * gain
    if squash is not None and tanh_RW is not None:
        grad_RW = grad_RW * (1.0 - tanh_RW * tanh_RW) * squash[1]
    # None, and not `z_RW` again: the compiler takes two views of one buffer for a case of its own.
    out_RW = z_RW if out_RW is None else out_RW
    out_RW.copy_(torch.where(active_R[:, None], grad_RW, 0.0))


def scalars(transform: LogitTransform, like: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """`gain`, and `(softcap, logit_scale)` if there is a soft-cap, as 0-dimensional tensors."""

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=accumulation_dtype(like.dtype), device=like.device)

    if transform.softcap is None:
        return scalar(transform.gain), None
    return scalar(transform.gain), (scalar(transform.softcap), scalar(transform.logit_scale))


class EagerTiles:
    """`TileOps` in plain torch, for any device and dtype."""

    row_tile = 16

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
        """See `TileOps.accumulate`."""
        gain, squash = scalars(transform, z_RW)
        local_R = ids_R - start
        for rows in _blocks(len(ids_R), self.row_tile):
            self._accumulate_tile(
                z_RW[rows].contiguous(),
                local_R[rows],
                stats_R4[rows],
                gain=gain,
                squash=squash,
                bias_W=bias_W,
            )
        if keys_RK is not None:
            for rows in _blocks(len(ids_R), EagerTiles.row_tile):
                new = pack_keys(_values(z_RW[rows], bias_W, squash)[0], start)
                both = torch.cat((keys_RK[rows], new), 1)
                keys_RK[rows] = largest_keys(both, keys_RK.shape[1])

    def finish(self, stats_N4: Tensor, gain: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `TileOps.finish`."""
        return finish_stats(stats_N4, gain)

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
        """See `TileOps.grad`."""
        gain, squash = scalars(transform, z_RW)
        local_R = ids_R - start
        for rows in _blocks(len(ids_R), self.row_tile):
            self._grad_tile(
                z_RW[rows].contiguous(),
                local_R[rows],
                grads_R6[rows],
                gain=gain,
                squash=squash,
                bias_W=bias_W,
                active_R=active_R[rows],
                out_RW=None if out_RW is None else out_RW[rows],
            )

    _accumulate_tile = staticmethod(accumulate_tile)
    _grad_tile = staticmethod(grad_tile)


class WideEagerTiles(EagerTiles):
    """The same for narrow blocks of many rows: more rows share the cost of an operation's call."""

    row_tile = 64


def _blocks(num_rows: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows that cover `num_rows`."""
    for a in range(0, num_rows, size):
        yield slice(a, a + size)
