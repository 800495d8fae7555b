"""Heads that are kept beside a base model, in the layouts that reward models are published in.

|layout|tensors below the prefix|from|
|---|---|---|
|linear|`weight`, `bias`|OpenRLHF (`value_head`, `score`; no bias), many of their own|
|summary|`summary.weight`, `summary.bias`|TRL's causal models with value head (`v_head`)|
|two layers, ReLU between|`0.weight`, `0.bias`, `2.weight`, `2.bias`|Qwen2.5-Math-PRM, INF-ORM|

Source: the classes of https://github.com/OpenRLHF/OpenRLHF (openrlhf/models/model.py) and
https://github.com/huggingface/trl (trl/models/modeling_value_head.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rewardsvc.errors import ConfigError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._loading import model_settings

if TYPE_CHECKING:
    from torch import Tensor, nn

KNOWN_PREFIXES = ("value_head", "score", "v_head", "reward_head", "regression_head")

LINEAR, SUMMARY, TWO_LAYERS = ("",), ("summary.",), ("0.", "2.")


def find_head(checkpoint: Checkpoint, prefix: str | None) -> tuple[str, ...] | None:
    """The layers of the checkpoint's own head as prefixes of tensor names, in order.

    Args:
        checkpoint: Where to look.
        prefix: The head's name; None tries the one in `config.json`, then the known ones.

    Returns:
        For instance ("v_head.summary.",); None if there is no such head.
    """
    stated = model_settings(checkpoint).get("value_head_prefix")
    if prefix is not None:
        candidates: tuple[str, ...] = (prefix,)
    else:
        candidates = (*([stated] if isinstance(stated, str) else []), *KNOWN_PREFIXES)
    for candidate in candidates:
        for layout in (LINEAR, SUMMARY, TWO_LAYERS):
            layers = tuple(f"{candidate}.{layer}" for layer in layout)
            if all(f"{layer}weight" in checkpoint.tensor_files for layer in layers):
                return layers
    return None


def load_head(
    checkpoint: Checkpoint, prefix: str | None, *, hidden_size: int, dtype: str, device: str
) -> Callable[[Tensor], Tensor]:
    """The head as a module from hidden states [N, D] to numbers [N, C].

    Hidden states are cast to the head's dtype: TRL keeps a float32 head on a bfloat16 model.

    Raises:
        ConfigError: If there is none, or its shape does not fit the model.
    """
    import torch
    from torch import nn

    layers = find_head(checkpoint, prefix)
    if layers is None:
        raise ConfigError(
            f"value_head_prefix: {checkpoint.folder} has no head tensor "
            f"{' or '.join(f'{p}.weight' for p in ([prefix] if prefix else KNOWN_PREFIXES))}; name "
            "the head's tensors with value_head_prefix"
        )
    modules: list[nn.Module] = []
    width = hidden_size
    for layer in layers:
        linear = _linear(checkpoint, layer)
        if linear.in_features != width:
            raise ConfigError(
                f"model: {layer}weight takes {linear.in_features} numbers, and gets {width}"
            )
        width = linear.out_features
        modules += [nn.ReLU(), linear] if modules else [linear]
    head = nn.Sequential(*modules).eval().requires_grad_(False).to(device)
    if dtype != "auto":
        head = head.to(getattr(torch, dtype))
    head_dtype = next(head.parameters()).dtype

    def apply(hidden_ND: Tensor) -> Tensor:
        numbers: Tensor = head(hidden_ND.to(head_dtype))
        return numbers

    return apply


def _linear(checkpoint: Checkpoint, layer: str) -> nn.Linear:
    from torch import nn

    weight = checkpoint.read(f"{layer}weight")
    if weight.dim() != 2:
        raise ConfigError(f"model: {layer}weight is {tuple(weight.shape)}, not a matrix")
    has_bias = f"{layer}bias" in checkpoint.tensor_files
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, dtype=weight.dtype)
    state = {"weight": weight}
    if has_bias:
        state["bias"] = checkpoint.read(f"{layer}bias")
    linear.load_state_dict(state)
    return linear
