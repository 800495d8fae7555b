"""A key-value cache that does not copy itself at every token.

transformers' `DynamicCache` concatenates: each new token copies all keys and values of all layers,
so that a completion of T tokens moves O(T^2) of them. Here the buffers are allocated once, for the
prompt and the longest completion, and the model sees views of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class _PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A `DynamicLayer` whose `keys` and `values` are the filled part of larger buffers."""

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._length = keys.shape[-2]
        self._key_buffer = _widen(keys, capacity)
        self._value_buffer = _widen(values, capacity)
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[-2]
        self._key_buffer[:, :, self._length : end] = key_states
        self._value_buffer[:, :, self._length : end] = value_states
        self._length = end
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        self._key_buffer = self._key_buffer[indices]
        self._value_buffer = self._value_buffer[indices]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys = self._key_buffer[:, :, : self._length]
        values = self._value_buffer[:, :, : self._length]
        self.keys, self.values = keys, values
        return keys, values


def _widen(states: Tensor, capacity: int) -> Tensor:
    batch, heads, length, width = states.shape
    wide = states.new_empty(batch, heads, capacity, width)
    wide[:, :, :length] = states
    return wide


def new_cache(model: nn.Module) -> DynamicCache:
    """An empty cache with the kinds of layers that `model` has (full, sliding window, linear)."""
    assert isinstance(model, PreTrainedModel)
    return DynamicCache(config=model.config)


def cache_argument(model: nn.Module, cache: object) -> dict[str, object]:
    """What to call `model` with so that it uses `cache`: named `cache` since transformers 5.24,
    `past_key_values` before."""
    return {_cache_name(type(model).forward): cache}


@functools.cache
def _cache_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def fan_out(cache: DynamicCache, *, num_return: int, capacity: int) -> None:
    """Makes a prompt's cache that of `num_return` completions each, in place.

    Args:
        cache: Holds the prompts, one row each.
        num_return: Rows that each row becomes; copies stand next to each other.
        capacity: Tokens that full-attention layers will hold in all, prompt and completion.
    """
    if num_return > 1:
        cache.batch_repeat_interleave(num_return)
    for index, layer in enumerate(cache.layers):
        # Subclasses keep a window or a state and are not concatenated without end.
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            cache.layers[index] = _PreallocatedLayer(layer.keys, layer.values, capacity)


def select_rows(cache: DynamicCache, rows_N: Tensor) -> None:
    """Keeps only the given rows, in place.

    Args:
        cache: Any cache of this module.
        rows_N: int64 [N], indices of rows.
    """
    rows_N = rows_N.to(torch.int64)
    layers: list[Any] = cache.layers
    for layer in layers:
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            # Plain indexing has a backward pass that adds up number by number, in one thread.
            layer.keys = layer.keys.index_select(0, rows_N)
            layer.values = layer.values.index_select(0, rows_N)
        else:
            layer.batch_select_indices(rows_N)
