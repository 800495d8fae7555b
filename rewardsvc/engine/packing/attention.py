"""Attention over packed batches, behind transformers' interface for attention functions.

A model whose attention implementation is `NAME` builds no mask of [T, T]: it is given a `Mask`,
which says what a layer wants, and hands it on to `packed_attention`. The rest is in the active
`Plan`.

Source: https://huggingface.co/docs/transformers/en/attention_interface
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewardsvc.engine.packing import canonical, fused, segments
from rewardsvc.engine.packing.layer import Layer, Mask
from rewardsvc.engine.packing.plan import PackingError, Plan, active_plan

NAME = "rewardsvc_packed"
"""The implementation's name at transformers."""


def register() -> None:
    """Makes `NAME` known to transformers; may be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, packed_mask)


def packed_mask(
    *args: Any, local_size: int | None = None, use_vmap: bool = False, config: Any = None, **kw: Any
) -> Mask:
    """What transformers calls for each kind of mask that a model has.

    Raises:
        PackingError: If the mask is of a kind that only a tensor can tell.
    """
    if use_vmap:
        raise PackingError("it adds rules of its own to attention masks")
    # Only the makers of bidirectional masks have this argument.
    causal = "allow_is_bidirectional_skip" not in kw
    if local_size is not None and local_size != getattr(config, "sliding_window", None):
        raise PackingError("it attends within chunks")
    return Mask(causal=causal, window=local_size)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kw: Any,
) -> tuple[Tensor, None]:
    """What models call in place of their attention.

    Args:
        module: The layer.
        query: [1, H, T, D].
        key: [1, K, T, D], H a multiple of K.
        value: Like `key`, perhaps with another D.
        attention_mask: What `packed_mask` gave.
        scaling: Of the products; None is 1/√D.
        softcap: See `Layer`.
        s_aux: See `Layer.sinks`.
        **kw: What else models hand on.

    Returns:
        [1, T, H, D], and no weights.

    Raises:
        PackingError: If the model attends in a way that is not known here.
    """
    plan = active_plan()
    if plan is None:
        raise PackingError("a model for packed batches was called outside of one")
    plan.num_calls += 1
    rows = (query.shape[0], query.shape[2], key.shape[2])
    if not isinstance(attention_mask, Mask):
        raise PackingError("it makes its attention masks itself")
    if rows != (1, plan.num_rows, plan.num_rows):
        raise PackingError("some layer attends something else than the tokens of the batch")
    if kw.get("position_bias") is not None:
        raise PackingError("it adds biases to attention that depend on positions")
    plan.saw_bidirectional |= not attention_mask.causal
    causal, reaches = attention_mask.causal, attention_mask.reaches(plan.longest)
    layer = Layer(
        mask=Mask(causal=causal, window=None if reaches else attention_mask.window),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=s_aux,
    )
    # What is called from here is of canonical shapes already where that is asked for.
    with torch._C.DisableTorchFunction():
        out = _attention(query[0], key[0], value[0], layer, plan)
    return out.transpose(0, 1)[None].contiguous(), None


def _attention(query: Tensor, key: Tensor, value: Tensor, layer: Layer, plan: Plan) -> Tensor:
    if plan.canonical:
        return canonical.attention(query, key, value, layer, plan)
    if plan.fused and query.is_cuda:
        return fused.attention(query, key, value, layer, plan)
    if layer.mask.window is None and layer.softcap is None:
        return segments.cascade(query, key, value, layer, plan)
    return segments.by_node(query, key, value, layer, plan)
