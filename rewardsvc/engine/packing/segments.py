"""Attention over packed batches, node by node, with what torch has on every device.

Two forms. `cascade` is quick: a node's tokens attend each other in one call, and all of the node's
descendants attend it in another; what a token found in several calls is put together by
the logarithms of the softmax denominators. `by_node` gathers what a run of tokens may attend and
masks it: for windows, and for products that are capped.

Shape letters: H query heads, K key heads, L rows, S keys, T packed tokens, D head size.

Source: putting softmax parts together is from FlashAttention (https://arxiv.org/abs/2205.14135) and
Hydragen (https://arxiv.org/abs/2402.05099).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc.engine.packing.layer import Layer, Mask
from rewardsvc.engine.packing.plan import Plan
from rewardsvc.engine.packing.prefixes import Node

BLOCK_ROWS = 256
"""Rows of a masked call at most: bounds the mask, and with a window the keys to be masked."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, layer: Layer, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Plain attention of some rows.

    Args:
        query: [H, L, D].
        key: [K, S, D]; H is a multiple of K.
        value: Like `key`; its D may differ.
        layer: Its mask is causal: L and S are the same rows. Its sinks are left out.
        allowed: bool [L, S], in place of the layer's mask; a True in each row. Float: added to the
            products, 0 or minus infinity.

    Returns:
        [H, L, D], and the logarithm of the softmax's denominator: float32 [H, L].
    """
    causal = layer.mask.causal and allowed is None
    out, denominator = _attend(*_grouped(query, key, value), layer, allowed, causal=causal)
    return out.flatten(0, 1), denominator.flatten(0, 1)


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views [K, G, ., D]: the G query heads of a key head, and this key head G times."""
    query = query.reshape(len(key), -1, *query.shape[1:])
    size = (-1, query.shape[1], -1, -1)
    return query, key[:, None].expand(size), value[:, None].expand(size)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: Layer,
    allowed: Tensor | None = None,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """`attend` for what `_grouped` gives: [K, G, L, D] and float32 [K, G, L]."""
    fits = query.shape[-1] == value.shape[-1] and layer.softcap is None
    if query.device.type == "cpu" and fits:
        bias = allowed
        if allowed is not None and allowed.dtype == torch.bool:
            bias = as_bias(allowed, query.dtype)
        # What F.scaled_dot_product_attention calls here as well, but does not give the denominator.
        found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=layer.scale
        )
        return found
    if causal:
        length, seen = query.shape[2], key.shape[2]
        allowed = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril()
    logits = (query @ key.transpose(-1, -2)).float() * layer.scale
    if layer.softcap is not None:
        logits = (logits / layer.softcap).tanh() * layer.softcap
    if allowed is not None and allowed.dtype == torch.bool:
        logits = logits.masked_fill(~allowed, -torch.inf)
    elif allowed is not None:
        logits = logits + allowed
    denominator = logits.logsumexp(-1)
    return (logits - denominator[..., None]).exp().to(value.dtype) @ value, denominator


def as_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to products, so that only some of them count."""
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill_(~allowed, -torch.inf)


def sink_share(denominator: Tensor, sinks: Tensor) -> Tensor:
    """What is left of the attention beside the sinks: [H, L] of the denominator's [H, L]."""
    return (denominator - sinks[:, None]).sigmoid()


def cascade(query: Tensor, key: Tensor, value: Tensor, layer: Layer, plan: Plan) -> Tensor:
    """[H, T, D] of query [H, T, D], key and value [K, T, D]; no window, no cap."""
    out = empty_output(query, value)
    query, key, value = _grouped(query, key, value)
    found = out.view(*query.shape[:2], *out.shape[1:])
    denominator: Tensor | None = None
    if plan.is_shared or layer.sinks is not None:
        denominator = query.new_empty(query.shape[:3], dtype=torch.float32)
    # All views at once: what is left for each node is one product and one copy.
    lengths = [node.stop - node.start for node in plan.nodes]
    queries, keys, values, founds = (
        torch.split(part, lengths, dim=2) for part in (query, key, value, found)
    )
    for index, own_found in enumerate(founds):
        own, own_denominator = _attend(
            queries[index], keys[index], values[index], layer, causal=layer.mask.causal
        )
        own_found.copy_(own)
        if denominator is not None:
            node = plan.nodes[index]
            denominator[:, :, node.start : node.stop] = own_denominator
    if denominator is None:
        return out
    for node in plan.nodes:
        if node.subtree_stop > node.stop:
            own_rows, below = slice(node.start, node.stop), slice(node.stop, node.subtree_stop)
            more = _attend(
                query[:, :, below], key[:, :, own_rows], value[:, :, own_rows], layer, causal=False
            )
            add_part(found[:, :, below], denominator[:, :, below], more)
    if layer.sinks is not None:
        out *= sink_share(denominator.flatten(0, 1), layer.sinks)[..., None]
    return out


def empty_output(query: Tensor, value: Tensor) -> Tensor:
    """Uninitialised [H, T, D] whose memory is [T, H, D], as models want it in the end."""
    return query.new_empty(query.shape[1], len(query), value.shape[-1]).transpose(0, 1)


def add_part(out: Tensor, denominator: Tensor, part: tuple[Tensor, Tensor]) -> None:
    """Adds to rows what they found among other keys; in place.

    Args:
        out: [..., L, D], what they found so far.
        denominator: Of it: float32 [..., L].
        part: The same two of the other keys.
    """
    more, more_denominator = part
    share = (more_denominator - denominator).sigmoid()
    out.lerp_(more, share[..., None].to(out.dtype))
    torch.logaddexp(denominator, more_denominator, out=denominator)


def by_node(query: Tensor, key: Tensor, value: Tensor, layer: Layer, plan: Plan) -> Tensor:
    """Like `cascade`, for every kind of layer."""
    out = empty_output(query, value)
    for node in plan.nodes:
        for start in range(node.start, node.stop, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, node.stop))
            seen = _seen_by(node, rows, layer.mask)
            allowed = None
            if layer.mask.causal or layer.mask.window is not None:
                allowed = layer.mask.allowed(
                    plan.positions[rows], joined(plan.positions, seen, dim=0)
                )
            found, denominator = attend(
                query[:, rows], joined(key, seen), joined(value, seen), layer, allowed
            )
            if layer.sinks is not None:
                found = found * sink_share(denominator, layer.sinks)[..., None].to(found.dtype)
            out[:, rows] = found
    return out


def _seen_by(node: Node, rows: slice, mask: Mask) -> list[slice]:
    """The rows that some rows of a node may attend, or a few more."""
    first = node.position + rows.start - node.start
    last = node.position + rows.stop - 1 - node.start
    if not mask.causal:
        if mask.window is None:
            return [slice(node.start, node.stop)]
        low, high = rows.start - mask.window, rows.stop + mask.window
        return [slice(max(node.start, low), min(node.stop, high))]
    start = 0 if mask.window is None else max(0, first - mask.window + 1)
    return rows_between(node, start, last + 1)


def rows_between(node: Node, start: int, stop: int) -> list[slice]:
    """The rows of positions `start` to `stop` of the sequences through a node."""
    found = []
    for part in node.path():
        low, high = max(start, part.position), min(stop, part.position_stop)
        if low < high:
            offset = part.start - part.position
            found.append(slice(low + offset, high + offset))
    return found


def joined(values: Tensor, rows: list[slice], dim: int = 1) -> Tensor:
    """Some runs of rows, one behind another; without a copy if it is one."""
    parts = [values.narrow(dim, run.start, run.stop - run.start) for run in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
