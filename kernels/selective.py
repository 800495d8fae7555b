"""`selective_logprob`: log-prob, entropy, log-sum-exp and top-k of logits in one read of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rewardsvc.kernels.autograd import apply
from rewardsvc.kernels.checks import check_float, check_shape, check_topk, start_id_check
from rewardsvc.kernels.dispatch import Backend, choose_backend, tile_ops
from rewardsvc.kernels.tiles.rows import RowRecords, backward_records, pad_rows, token_stats
from rewardsvc.kernels.tiles.topk import MAX_TOPK
from rewardsvc.kernels.transform import LogitTransform
from rewardsvc.kernels.types import TokenStats

# N rows (tokens), V vocabulary, R rows of a tile.


def selective_logprob(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    entropy: bool = False,
    topk: int = 0,
    backend: str | None = None,
) -> TokenStats:
    """Log-probs of given tokens, from logits that are read once and copied never.

    `softmax(softcap * tanh(logits / softcap) / temperature)`. A row depends on no other row, bit
    for bit. -inf logits have no weight; under a soft-cap they become `-softcap`, as the formula
    says, so ban tokens after it. A row with a NaN or +inf logit, or with nothing but -inf, is NaN,
    as in `torch.log_softmax`, and harms no other row.

    Args:
        logits: [..., V], float16, bfloat16, float32 or float64; any strides.
        ids: [...], int32 or int64, in [0, V). `ids[i]` is the token that `logits[i]` predicts:
            shift before the call.
        temperature: Finite and above 0.
        softcap: Finite and above 0; None for none.
        mask: [...] bool, rows that count. The others get zeros, no gradient, and any id.
        entropy: Whether to return entropies.
        topk: How many of the most likely tokens to return, at most 64.
        backend: Forces "triton", "compiled" or "eager".

    Returns:
        The statistics; `logp`, `entropy` and `lse` are differentiable in the logits.

    Raises:
        ValueError: If an argument is malformed; an id out of range is named with its position. See
            `checks.py` for when that is found on a GPU.
    """
    check_float("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; expected [..., V] with V > 0")
    shape, vocab_size = logits.shape[:-1], logits.shape[-1]
    check_shape("ids", ids, tuple(shape))
    check_topk(topk, vocab_size, MAX_TOPK)
    transform = LogitTransform(temperature=temperature, softcap=softcap)
    chosen = choose_backend(logits, vocab_size, backend)
    ids_N = ids.reshape(-1)
    if mask is None:
        active_N = torch.ones_like(ids_N, dtype=torch.bool)
    else:
        check_shape("mask", mask, tuple(shape))
        active_N = mask.reshape(-1).to(torch.bool)
    check = start_id_check(ids_N, active_N, vocab_size)
    call = _Call(transform=transform, backend=chosen, topk=topk)
    outputs = apply(_SelectiveLogprob, logits, ids_N.long(), active_N, call)
    check.finish()
    logp_N, *others = outputs
    return token_stats((check.mark(logp_N), *others), shape, entropy=entropy, topk=topk)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What a call is made of, tensors aside."""

    transform: LogitTransform
    backend: Backend
    topk: int


class _SelectiveLogprob(torch.autograd.Function):
    """logp, entropy, lse, top-k log-probs and ids of logits [..., V]."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids_N: Tensor, active_N: Tensor, call: _Call
    ) -> tuple[Tensor, ...]:
        ops = tile_ops(call.backend)
        parts = []
        at = 0
        for z_NV in _matrices(logits):
            rows = slice(at, at + len(z_NV))
            at = rows.stop
            records = RowRecords(
                ids_N[rows], active_N[rows], z_NV, topk=call.topk, multiple=ops.row_tile
            )
            for a, z_RV in _tiles(z_NV, ops.row_tile):
                records.accumulate(ops, z_RV, call.transform, first_row=a)
            parts.append(records.finish(ops, call.transform.gain))
        outputs = tuple(torch.cat(same) for same in zip(*(p.outputs for p in parts), strict=True))
        saved_3N = torch.cat([p.saved for p in parts], 1)
        ctx.save_for_backward(logits, ids_N, active_N, saved_3N)
        ctx.call = call
        ctx.mark_non_differentiable(outputs[3], outputs[4])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, ids_N, active_N, saved_3N = ctx.saved_tensors
        call: _Call = ctx.call
        ops = tile_ops(call.backend)
        grads_N6 = backward_records(saved_3N, grads[:3])
        d_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        d_logits_NV = d_logits.view(-1, logits.shape[-1])
        at = 0
        for z_NV in _matrices(logits):
            for a, z_RV in _tiles(z_NV, ops.row_tile):
                num_rows = min(len(z_RV), len(z_NV) - a)
                rows = slice(at + a, at + a + num_rows)
                out_RV = pad_rows(d_logits_NV[rows], len(z_RV))
                ops.grad(
                    z_RV,
                    pad_rows(ids_N[rows], len(z_RV)),
                    pad_rows(grads_N6[rows], len(z_RV)),
                    call.transform,
                    bias_W=None,
                    active_R=pad_rows(active_N[rows], len(z_RV)),
                    start=0,
                    out_RW=out_RV,
                )
                if num_rows < len(z_RV):
                    d_logits_NV[rows] = out_RV[:num_rows]
            at += len(z_NV)
        return d_logits, None, None, None


def _matrices(logits: Tensor) -> Iterator[Tensor]:
    """Views [N, V] that make up `logits` [..., V] in order, without a copy.

    One, unless the leading dimensions cannot be merged, as in `logits[:, :-1]`.
    """
    if logits.dim() == 1:
        yield logits[None]
        return
    try:
        yield logits.view(-1, logits.shape[-1])
    except RuntimeError:
        for part in logits:
            yield from _matrices(part)


def _tiles(z_NV: Tensor, row_tile: int) -> Iterator[tuple[int, Tensor]]:
    """First row and logits: all whole tiles as one view, then the rest padded to a tile."""
    num_full = len(z_NV) - len(z_NV) % row_tile
    if num_full:
        yield 0, z_NV[:num_full]
    if num_full < len(z_NV):
        yield num_full, pad_rows(z_NV[num_full:], row_tile)
