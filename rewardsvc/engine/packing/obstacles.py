"""Why a model cannot be packed, as far as its configuration and its class tell."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

RECURRENT = ("linear_attention", "conv", "mamba", "recurrent", "hybrid")
"""Beginnings of the kinds of layers whose state runs on from token to token."""

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary embeddings that are made for the longest sequence of the batch."""


def obstacle(model: Any, *, attention: str, max_length: int) -> str:
    """Why not; "" if nothing is known against it.

    Args:
        model: The transformers model.
        attention: The attention implementation that was asked for.
        max_length: Tokens of the longest sequence that may come.
    """
    config = model.config.get_text_config()
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    chunk = getattr(config, "attention_chunk_size", None)
    if attention != "auto":
        return f"attention: {attention} was asked for, and only auto packs"
    if getattr(model.config, "is_encoder_decoder", False):
        return "it has an encoder and a decoder"
    if any(kind.startswith(RECURRENT) for kind in kinds):
        return f"it has layers with a running state ({', '.join(kinds)})"
    if chunk is not None and chunk < max_length:
        return f"it attends within chunks of {chunk} tokens, and sequences may be longer"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not use transformers' AttentionInterface"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return f"{type(model.base_model).__name__} takes no position_ids"
    return ""


def length_limit(model: Any) -> int | None:
    """Tokens up to which a sequence is computed alike in any batch; None: there is no limit."""
    config = model.config.get_text_config()
    for rope in _ropes(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            return int(
                rope.get("original_max_position_embeddings") or config.max_position_embeddings
            )
    return None


def _ropes(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings themselves, and those for each kind of layer."""
    yield settings
    yield from (part for part in settings.values() if isinstance(part, Mapping))


def first_counted(model: Any) -> int | None:
    """The padding index, for models that count positions from behind it (RoBERTa); else None."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings":
            found: int | None = getattr(module, "padding_idx", None)
            return found
    return None


def has_experts(model: Any) -> bool:
    """Whether tokens are sent to experts, which get as many as the batch happens to hold."""
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())
