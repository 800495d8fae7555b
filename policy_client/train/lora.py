"""Low-rank adapters (LoRA), put into a model in place by peft.

W x becomes W x + (alpha / r) B A x; W is frozen, A [r, in] and B [out, r] learn. B starts at zero,
so an adapted model starts as the model itself, and switching its adapters off gives that model back
at any time: the reference of a KL penalty costs no second copy.

The model keeps its class. Everything that works on a transformers model works on an adapted one:
its trunk, its head, its cache.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, equation 3.
"""

from __future__ import annotations

import copy
import sys
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.config_base import LoraSection
from rewardsvc.policy_client.train.sharding import part_like, whole, whole_state

M = TypeVar("M", bound=nn.Module)

ADAPTER = "default"
"""peft's name of the one adapter that a model has here."""

ALL_LINEAR = "all-linear"

_ADAPTER_WEIGHT = ".lora_"
"""What names of adapters' weights hold, and no others."""

_FINGERPRINT_ELEMENTS = 4096
"""Elements of a frozen weight that are compared at a resume: other models differ in all."""


def add_adapters(model: PreTrainedModel, lora: LoraSection, *, learned: Collection[str]) -> None:
    """Freezes a model and puts adapters into it.

    Adapter weights are float32 whatever the model's dtype: a learning step is too small for less.
    A takes its first values from torch's global generator.

    Args:
        model: A model without adapters; changed in place.
        lora: What kind, and where.
        learned: Names of parameters that learn as they are, such as those of a new head.

    Raises:
        ConfigError: If peft is missing, the model has adapters already, or the target modules are
            none, unfit, part of what is learned, or tied to other weights.
    """
    peft = _peft()
    if has_adapters(model):
        raise ConfigError(
            "lora: the model has adapters already; merge them into it first, or leave lora out"
        )
    targets: str | list[str] = lora.target_modules
    if targets == ALL_LINEAR:
        targets = _linear_modules(model, learned)
    settings = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    try:
        with warnings.catch_warnings():
            # Of tied weights, which are refused below.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
            peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules: {lora.target_modules!r}: {error}") from error
    peft.tuners.tuners_utils.cast_adapter_dtype(model, ADAPTER)
    _check_targets(model, lora, learned)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_ADAPTER_WEIGHT in name or name in learned)
    model.eval()  # type: ignore[no-untyped-call]  # adapters come in training mode


def has_adapters(model: nn.Module) -> bool:
    """Whether there are LoRA layers in a model."""
    return any(True for _ in _layers(model))


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, an adapted model is the model that it was made of, without dropout.

    A model without adapters is itself. Not for two threads at once.
    """
    was_training = model.training
    layers = [layer for _, layer in _layers(model)]
    # peft's switch sets these too, as if every adapter were to learn afterwards.
    learns = [(one, one.requires_grad) for layer in layers for one in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, was_learning in learns:
            parameter.requires_grad_(was_learning)


def copy_of(model: M) -> M:
    """A copy of a model; of an adapted one, the frozen weights are shared and not copied."""
    shared: dict[int, Any] = {}
    if has_adapters(model):
        frozen = {number for _, number in _frozen(model)}
        shared = {id(one): one for one in model.parameters() if id(one) in frozen}
    return copy.deepcopy(model, shared)


@torch.no_grad()
def merged_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the plain model that computes what an adapted one does; it is not changed.

    Each merged weight is W + (alpha / r) B A, rounded once to the dtype of W.
    """
    state = whole_state(model)
    for name, layer in _layers(model):
        weight = layer.get_base_layer().weight
        merged = weight.float() + layer.get_delta_weight(ADAPTER).float()
        state[f"{name}.base_layer.weight"] = whole(merged.to(weight.dtype))
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if _ADAPTER_WEIGHT not in name
    }


def learned_state(model: nn.Module) -> dict[str, Tensor]:
    """What an adapted model has of its own: adapters, whatever else learns, and buffers."""
    frozen = dict(_frozen(model))
    return {
        name: whole(tensor) for name, tensor in model.state_dict().items() if name not in frozen
    }


def load_learned_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Fills an adapted model with another's `learned_state`.

    Raises:
        RuntimeError: If the names or shapes are not those of this model.
    """
    wanted = learned_state(model).keys()
    if wanted != state.keys():
        odd = sorted(wanted ^ state.keys())
        raise RuntimeError(f"{len(odd)} names differ, such as {odd[0]!r}")
    mine = model.state_dict()
    model.load_state_dict(
        {name: part_like(tensor, mine[name]) for name, tensor in state.items()}, strict=False
    )


def frozen_fingerprint(model: nn.Module) -> str:
    """Tells apart the models that adapters may have been put into: hexadecimal, 8 digits."""
    found = 0
    names = dict(_frozen(model))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in names:
            head = whole(parameter.detach()).flatten()[:_FINGERPRINT_ELEMENTS].float().cpu()
            found = zlib.crc32(head.numpy().tobytes(), zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def _frozen(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Names and ids of the parameters of the model that adapters were put into; tied ones twice."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad and _ADAPTER_WEIGHT not in name:
            yield name, id(parameter)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    if "peft" not in sys.modules:  # nobody can have made any
        return
    layer_class = _peft().tuners.lora.LoraLayer
    for name, module in model.named_modules():
        if isinstance(module, layer_class):
            yield name, module


def _linear_modules(model: PreTrainedModel, learned: Collection[str]) -> list[str]:
    """Full names of all linear modules of the trunk; not of heads, nor of what learns by itself."""
    trunk = set(map(id, model.base_model.modules()))
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and id(module) in trunk
        and module is not head
        and f"{name}.weight" not in learned
    ]


def _check_targets(model: nn.Module, lora: LoraSection, learned: Collection[str]) -> None:
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, layer in _layers(model):
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear | Conv1D):
            reason = f"is a {type(base).__name__}; only linear modules can be adapted"
        elif f"{name}.weight" in learned:
            reason = "is new and learned whole; leave it out"
        elif owners[id(base.weight)] > 1:
            reason = "is tied to another module, which would change with it; leave it out"
        else:
            continue
        raise ConfigError(f"lora.target_modules: {lora.target_modules!r}: {name} {reason}")


def _peft() -> Any:
    try:
        import peft
        import peft.tuners.lora
        import peft.tuners.tuners_utils
    except ImportError as error:
        raise ConfigError(
            "lora: peft is not installed; `pip install 'rewardsvc[lora]'`, or leave lora out"
        ) from error
    return peft
