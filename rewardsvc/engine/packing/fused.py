"""Attention over packed batches on CUDA devices: few kernels, whatever the batch is like.

Two forms, both without a mask of [T, T]:

* Flash attention of sequences of several lengths, for 16-bit numbers: a call in which all nodes
  attend themselves, then one for each depth of the tree, in which the descendants of the nodes at
  that depth attend these; the parts are put together as in `segments`.
* FlexAttention, for windows across shared prefixes, capped products and 32-bit numbers. Its mask
  needs two numbers of each token: where the subtree of its node ends, and its position.

Shape letters: H query heads, K key heads, T packed tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardsvc.engine.packing.layer import Layer, Mask
from rewardsvc.engine.packing.plan import Plan
from rewardsvc.engine.packing.prefixes import Node
from rewardsvc.engine.packing.segments import add_part, sink_share

VarlenAttention = Callable[["Span", Tensor, Tensor, Tensor, Layer], tuple[Tensor, Tensor]]
"""[T, H, D] and float32 [H, T] of query [T, H, D], key and value [T, K, D]."""

FLASH_HEAD_SIZE = 256
"""Largest head of flash attention."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """Runs of rows that attend runs of rows, in one call.

    Attributes:
        query_rows: int64: the queries, run after run; None is all.
        key_rows: int64: the keys, run after run; None is all.
        query_bounds: int32 [runs + 1]: where the runs of queries begin and end.
        key_bounds: The same of the keys.
        max_queries: Longest run.
        max_keys: Longest run.
        causal: Queries and keys of a run are the same rows, and attend what is before them.
    """

    query_rows: Tensor | None
    key_rows: Tensor | None
    query_bounds: Tensor
    key_bounds: Tensor
    max_queries: int
    max_keys: int
    causal: bool


def attention(query: Tensor, key: Tensor, value: Tensor, layer: Layer, plan: Plan) -> Tensor:
    """[H, T, D] of query [H, T, D], key and value [K, T, D]."""
    plain = layer.softcap is None and (layer.mask.window is None or not plan.is_shared)
    fits = query.shape[-1] == value.shape[-1] <= FLASH_HEAD_SIZE
    if plain and fits and query.dtype in (torch.bfloat16, torch.float16):
        return varlen(query, key, value, layer, plan)
    return flex(query, key, value, layer, plan)


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: Layer,
    plan: Plan,
    kernel: VarlenAttention | None = None,
) -> Tensor:
    """The first form; `kernel` is torch's flash attention unless given."""
    kernel = kernel or flash
    query_THD, key_TKD, value_TKD = (part.transpose(0, 1) for part in (query, key, value))
    if "spans" not in plan.memo:
        plan.memo["spans"] = spans(plan.nodes, query.device, causal=layer.mask.causal)
    own, *depths = plan.memo["spans"]
    out_THD, denominator = kernel(own, query_THD, key_TKD, value_TKD, layer)
    out = out_THD.transpose(0, 1)
    for span in depths:
        rows = span.query_rows
        found = kernel(
            span, query_THD[rows], key_TKD[span.key_rows], value_TKD[span.key_rows], layer
        )
        some, some_denominator = out[:, rows], denominator[:, rows]
        add_part(some, some_denominator, (found[0].transpose(0, 1), found[1]))
        out[:, rows], denominator[:, rows] = some, some_denominator
    if layer.sinks is not None:
        out = out * sink_share(denominator, layer.sinks)[..., None].to(out.dtype)
    return out


def spans(nodes: list[Node], device: torch.device, *, causal: bool) -> list[Span]:
    """What each kernel call of `varlen` computes: nodes themselves, then depth after depth."""
    own = [(node.start, node.stop) for node in nodes]
    found = [_span(own, own, device, causal=causal, everything=True)]
    by_depth: dict[int, list[Node]] = {}
    for node in nodes:
        if node.subtree_stop > node.stop:
            by_depth.setdefault(len(node.path()), []).append(node)
    for _, inner in sorted(by_depth.items()):
        below = [(node.stop, node.subtree_stop) for node in inner]
        above = [(node.start, node.stop) for node in inner]
        found.append(_span(below, above, device, causal=False, everything=False))
    return found


def _span(
    queries: list[tuple[int, int]],
    keys: list[tuple[int, int]],
    device: torch.device,
    *,
    causal: bool,
    everything: bool,
) -> Span:
    def rows(runs: list[tuple[int, int]]) -> Tensor | None:
        if everything:
            return None
        return torch.from_numpy(np.concatenate([np.arange(*run) for run in runs])).to(device)

    def bounds(runs: list[tuple[int, int]]) -> Tensor:
        lengths = [0, *(stop - start for start, stop in runs)]
        return torch.from_numpy(np.cumsum(lengths).astype(np.int32)).to(device)

    return Span(
        query_rows=rows(queries),
        key_rows=rows(keys),
        query_bounds=bounds(queries),
        key_bounds=bounds(keys),
        max_queries=max(stop - start for start, stop in queries),
        max_keys=max(stop - start for start, stop in keys),
        causal=causal,
    )


def flash(
    span: Span, query: Tensor, key: Tensor, value: Tensor, layer: Layer
) -> tuple[Tensor, Tensor]:
    """torch's flash attention; see `VarlenAttention`."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    window = (-1, -1)
    if span.causal:
        # The kernel counts how far back a token sees, the mask how much, the token itself included.
        window = (-1 if layer.mask.window is None else layer.mask.window - 1, 0)
    elif layer.mask.window is not None:
        window = (layer.mask.window, layer.mask.window)
    out, denominator = varlen_attn(
        query,
        key,
        value,
        span.query_bounds,
        span.key_bounds,
        span.max_queries,
        span.max_keys,
        return_aux=AuxRequest(lse=True),
        scale=layer.scale,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out, denominator


def flex(query: Tensor, key: Tensor, value: Tensor, layer: Layer, plan: Plan) -> Tensor:
    """The second form."""
    from torch.nn.attention.flex_attention import AuxRequest

    softcap = layer.softcap

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    if layer.mask not in plan.memo:
        plan.memo[layer.mask] = block_mask(plan, layer.mask, query.device)
    out, aux = flex_kernel(query.device.type)(
        query[None],
        key[None],
        value[None],
        score_mod=None if softcap is None else capped,
        block_mask=plan.memo[layer.mask],
        scale=layer.scale,
        enable_gqa=len(query) != len(key),
        return_aux=AuxRequest(lse=True),
    )
    found: Tensor = out[0]
    if layer.sinks is not None:
        found = found * sink_share(aux.lse[0], layer.sinks)[..., None].to(found.dtype)
    return found


@lru_cache
def flex_kernel(device_type: str) -> Any:
    """FlexAttention, compiled where that pays: elsewhere it computes all products of a batch."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


def block_mask(plan: Plan, mask: Mask, device: torch.device) -> Any:
    """The tree as FlexAttention's mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    starts = np.zeros(plan.num_rows, np.int64)
    ends = np.zeros(plan.num_rows, np.int64)
    for node in plan.nodes:
        starts[node.start : node.stop] = node.start
        ends[node.start : node.stop] = node.subtree_stop
    start_T, end_T = torch.from_numpy(starts).to(device), torch.from_numpy(ends).to(device)
    position_T = plan.positions

    def allowed(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # A query sees a key if it is in the subtree of the key's node.
        seen = (query >= start_T[key]) & (query < end_T[key])
        away = position_T[query] - position_T[key]
        if mask.causal:
            seen = seen & (away >= 0)
        if mask.window is not None:
            seen = seen & ((away < mask.window) if mask.causal else (away.abs() <= mask.window))
        return seen

    return create_block_mask(allowed, None, None, plan.num_rows, plan.num_rows, device=device)
