"""Activation checkpointing: what layers compute is dropped, and computed again going backward.

Why not `gradient_checkpointing_enable` of transformers: it acts in training mode only, where
dropout would make log-probs random, and it takes the cache away from layers, through which
completions see their prompt here. Silently: they would see none. Here the layers of a model are
wrapped for the time of a forward pass, in either mode, and get a cache that may be asked twice.

A layer that is computed again sees what it saw: the same inputs and masks (they are kept), the same
prompts, random numbers of dropout and precision, and its products are those of the same library.
Gradients are the same bit for bit.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.

Legend: U different prompts, W tokens of the longest one, N completions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.online.linears import are_fast, fast_linears

FORWARD = "forward"


@contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """Inside, the layers of a model keep their inputs only; the backward pass may come later.

    Nothing is dropped while gradients are off.
    """
    layers = [one for one in _layers(module) if FORWARD not in one.__dict__]
    for layer in layers:
        layer.__dict__[FORWARD] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__[FORWARD]


def is_recomputed(module: nn.Module) -> bool:
    """Whether this is inside `recomputed(module)`."""
    return any(FORWARD in one.__dict__ for one in _layers(module))


def check_recomputable(model: PreTrainedModel, *, with_prompts: bool) -> None:
    """Whether a model's layers can be computed again.

    Args:
        model: Any.
        with_prompts: Whether completions will see their prompts through a cache.

    Raises:
        ConfigError: If not.
    """
    kind = model.config.model_type
    if not any(True for _ in _layers(model)):
        raise ConfigError(
            f"activation_checkpointing: true, but transformers has no layers of a {kind} model "
            "that can be computed again; set it to false"
        )
    if with_prompts:
        PromptCache(model)


class PromptCache(DynamicCache):
    """Keys and values of prompts, for layers that are computed once or twice.

    A layer of transformers' caches grows whenever it is asked. Here the prompts' pass writes what
    it would write again, and the completions' pass, with a cache of its own, writes nothing.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """An empty cache.

        Raises:
            ConfigError: If a layer attends to anything but all tokens before it.
        """
        super().__init__(config=model.config)
        others = {type(layer).__name__ for layer in self.layers} - {DynamicLayer.__name__}
        if others or not self.layers:
            raise ConfigError(
                f"activation_checkpointing: true, but a {model.config.model_type} model has other "
                f"caches than of full attention ({', '.join(sorted(others)) or 'none listed'}), "
                "which cannot be asked twice; set it to false"
            )
        self._model = model
        self.layers: list[Any] = [_Written() for _ in self.layers]  # type: ignore[no-untyped-call]

    def for_completions(self, prompt_of_N: Tensor) -> PromptCache:
        """A cache for completions; `prompt_of_N` int64 [N] says which row each one's prompt is."""
        cache = PromptCache(self._model)
        cache.layers = [_Read(layer.keys, layer.values, prompt_of_N) for layer in self.layers]
        return cache


class _Written(DynamicLayer):  # type: ignore[no-untyped-call]
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        self.is_initialized = True
        return key_states, value_states


class _Read(DynamicLayer):  # type: ignore[no-untyped-call]
    """Each completion's prompt is copied to it while it is computed, and not kept."""

    def __init__(self, keys: Tensor, values: Tensor, rows_N: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = self._keys, self._values = keys, values
        self.is_initialized = True
        self._rows_N = rows_N

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys = self._keys.index_select(0, self._rows_N)
        values = self._values.index_select(0, self._rows_N)
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    return (one for one in module.modules() if isinstance(one, GradientCheckpointingLayer))


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(layer).forward
    if not torch.is_grad_enabled():
        return forward(layer, *args, **kwargs)
    # A cache that the model has made for itself is of no use in training, and would be written
    # twice.
    args = tuple(map(_usable, args))
    kwargs = {name: _usable(one) for name, one in kwargs.items()}
    fast = are_fast(layer)

    def run(*args: Any) -> Any:
        with fast_linears(layer) if fast else nullcontext():
            return forward(layer, *args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False)


def _usable(argument: Any) -> Any:
    if isinstance(argument, Cache) and not isinstance(argument, PromptCache):
        return None
    return argument
