"""Heads that are kept beside a base model, in the layouts that reward models are published in.

|layout|tensors below the prefix|from|
|---|---|---|
|linear|`weight`, `bias`|OpenRLHF (`value_head`, `score`; no bias), many of their own|
|summary|`summary.weight`, `summary.bias`|TRL's causal models with value head (`v_head`)|
|layers, ReLU between|`0.weight`, `0.bias`, `2.weight`, …|Qwen2.5-Math-PRM, INF-ORM|
|both|`summary.0.weight`, `summary.2.weight`, …|GRM with its text-generation regulariser|
|gated|`regression_layer.weight` and `gating.layers.*`|ArmoRM, QRM|

Every head is a function of one position's hidden state and of nothing else, in float32. What
combines positions (a gate that reads the prompt, a mean, two texts that are compared) is computed
from its numbers afterwards, so that no way of putting samples into batches matters to a head.

Source: the classes of https://github.com/OpenRLHF/OpenRLHF (openrlhf/models/model.py),
https://github.com/huggingface/trl (trl/models/modeling_value_head.py) and
https://github.com/allenai/reward-bench (rewardbench/models).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from rewardsvc.errors import ConfigError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._loading import logit_rule, model_settings

if TYPE_CHECKING:
    from torch import Tensor, nn

KNOWN_PREFIXES = (
    "value_head",
    "score",
    "v_head",
    "reward_head",
    "regression_head",
    "score_head",
)

Activation: TypeAlias = Literal["relu", "tanh", "gelu", "silu", "none"]
Apply: TypeAlias = "Callable[[Tensor], Tensor]"


class HeadLayer(BaseModel):
    """A linear layer: the names of its tensors.

    Attributes:
        weight: Of shape [C, D].
        bias: Of shape [C]; None if it has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: str
    bias: str | None = None


class LinearHead(BaseModel):
    """A head of any linear layers, for models that no recipe knows.

    Attributes:
        layers: In order; what the last one gives are the outputs.
        activation: Between the layers.
        file: A safetensors file with the tensors; None: the checkpoint's own files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[HeadLayer, ...] = Field(min_length=1)
    activation: Activation = "relu"
    file: str | None = None


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
        for stem in (candidate, f"{candidate}.summary"):
            if f"{stem}.weight" in checkpoint.tensor_files:
                return (f"{stem}.",)
            numbers = _numbered(checkpoint, stem)
            if numbers:
                return tuple(f"{stem}.{number}." for number in numbers)
    return None


def _numbered(checkpoint: Checkpoint, stem: str) -> list[int]:
    """The numbers of the layers `stem.<number>.weight`, sorted."""
    pattern = re.compile(rf"{re.escape(stem)}\.(\d+)\.weight")
    found = (pattern.fullmatch(name) for name in checkpoint.tensor_files)
    return sorted(int(match[1]) for match in found if match)


def load_head(
    checkpoint: Checkpoint, prefix: str | None, *, hidden_size: int, dtype: str, device: str
) -> nn.Sequential:
    """The checkpoint's own head: layers with ReLU between.

    Raises:
        ConfigError: If there is none, or its shape does not fit the model.
    """
    layers = find_head(checkpoint, prefix)
    if layers is None:
        raise ConfigError(
            f"value_head_prefix: {checkpoint.folder} has no head tensor "
            f"{' or '.join(f'{p}.weight' for p in ([prefix] if prefix else KNOWN_PREFIXES))}; name "
            "the head's tensors with value_head_prefix"
        )
    has_bias = [f"{layer}bias" in checkpoint.tensor_files for layer in layers]
    named = tuple(
        HeadLayer(weight=f"{layer}weight", bias=f"{layer}bias" if bias else None)
        for layer, bias in zip(layers, has_bias, strict=True)
    )
    head = LinearHead(layers=named)
    return build_head(head, checkpoint, hidden_size=hidden_size, dtype=dtype, device=device)


def build_head(
    head: LinearHead, checkpoint: Checkpoint, *, hidden_size: int, dtype: str, device: str
) -> nn.Sequential:
    """A configured head as a module from hidden states [N, D] to numbers [N, C].

    Hidden states are cast to the head's dtype: TRL keeps a float32 head on a bfloat16 model.

    Raises:
        ConfigError: If a tensor is missing, or its shape does not fit.
    """
    import torch
    from torch import nn

    class Cast(nn.Module):
        def forward(self, hidden_ND: Tensor) -> Tensor:
            return hidden_ND.to(head_dtype)

    activation: type[nn.Module] = {
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "none": nn.Identity,
    }[head.activation]
    modules: list[nn.Module] = []
    width = hidden_size
    for layer in head.layers:
        linear = _linear(layer, checkpoint, head.file)
        if linear.in_features != width:
            raise ConfigError(
                f"model: {layer.weight} takes {linear.in_features} numbers, and gets {width}"
            )
        width = linear.out_features
        modules += [activation(), linear] if modules else [linear]
    module = nn.Sequential(Cast(), *modules).eval().requires_grad_(False).to(device)
    if dtype != "auto":
        module = module.to(getattr(torch, dtype))
    head_dtype = next(module.parameters()).dtype
    return module


def num_outputs(head: nn.Sequential) -> int:
    """C, how many numbers a head gives."""
    return int(head[-1].out_features)  # type: ignore[arg-type]


def is_linear(head: nn.Sequential) -> bool:
    """Whether a head is one linear layer, so that a mean may be taken before or after it."""
    from torch import nn

    return sum(isinstance(module, nn.Linear) for module in head) == 1


def _linear(layer: HeadLayer, checkpoint: Checkpoint, file: str | None) -> nn.Linear:
    from torch import nn

    weight = checkpoint.read(layer.weight, file)
    if weight.dim() != 2:
        raise ConfigError(f"model: {layer.weight} is {tuple(weight.shape)}, not a matrix")
    state = {"weight": weight}
    if layer.bias is not None:
        state["bias"] = checkpoint.read(layer.bias, file)
        if state["bias"].shape != weight.shape[:1]:
            raise ConfigError(
                f"model: {layer.bias} is {tuple(state['bias'].shape)}, and {layer.weight} gives "
                f"{len(weight)} numbers"
            )
    has_bias = layer.bias is not None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, dtype=weight.dtype)
    linear.load_state_dict(state)
    return linear


def token_head(model: Any, ids: Sequence[int]) -> Apply:
    """A causal language model's logits of some tokens, float32 [N, len(ids)]."""
    from torch.nn import functional as F

    output = model.get_output_embeddings()
    weight_CD = output.weight[list(ids)]
    bias_C = None if output.bias is None else output.bias[list(ids)]
    rule = logit_rule(model)
    return lambda hidden_ND: rule.apply(F.linear(hidden_ND, weight_CD, bias_C))


def mean_logit_head(model: Any) -> Apply:
    """The mean of a causal language model's logits over its vocabulary, float32 [N, 1].

    The mean of linear functions is the function of the mean weights: no [N, V] tensor.

    Raises:
        ConfigError: If the model caps its logits, so that they are not linear.
    """
    from torch.nn import functional as F

    output, rule = model.get_output_embeddings(), logit_rule(model)
    if rule.softcap is not None:
        raise ConfigError("head: mean_logit, but the model caps its logits")
    weight_1D = output.weight.float().mean(0, keepdim=True)
    bias_1 = None if output.bias is None else output.bias.float().mean(0, keepdim=True)
    return lambda hidden_ND: rule.apply(F.linear(hidden_ND.float(), weight_1D, bias_1))


def gated_head(
    checkpoint: Checkpoint, *, hidden_size: int, temperature: float, device: str
) -> tuple[Apply, int]:
    """ArmoRM's and QRM's head: what each of G objectives is worth, and the gate's weights.

    The score is the sum over objectives of the worth at the last token times the gate's weight at
    the end of the prompt. Both are given for every position, float32 [N, 2 G], worths first.
    Objectives that are kept as Q quantiles are their mean over these.

    Args:
        checkpoint: Has `regression_layer.weight` [G * Q, D], the layers of the gate, its
            `logit_scale`, and perhaps a `reward_transform_matrix` [G, G].
        hidden_size: D.
        temperature: Of the gate's softmax, where `config.json` does not say.
        device: Full name.

    Returns:
        The head and G.

    Raises:
        ConfigError: If a tensor is missing, or its shape does not fit.

    Source: Wang et al., "Interpretable Preferences via Multi-Objective Reward Modeling and
        Mixture-of-Experts", arXiv:2406.12845; Dorka, "Quantile Regression for Distributional Reward
        Models in RLHF", arXiv:2409.10164; rewardbench/models/qrm.py.
    """
    import torch

    gate = _gate(checkpoint, device)
    num_objectives = int(gate[-1].out_features)  # type: ignore[arg-type]
    worth = checkpoint.read("regression_layer.weight").float().to(device)
    if worth.shape[1] != hidden_size or len(worth) % num_objectives:
        raise ConfigError(
            f"model: regression_layer.weight is {tuple(worth.shape)}; expected a multiple of "
            f"{num_objectives} rows, one for each objective of the gate, and {hidden_size} columns"
        )
    worth_GD = worth.reshape(num_objectives, -1, hidden_size).mean(1)
    if "reward_transform_matrix" in checkpoint.tensor_files:
        transform = checkpoint.read("reward_transform_matrix").float().to(device)
        worth_GD = transform.T @ worth_GD
    scale = 1.0
    if "gating.logit_scale" in checkpoint.tensor_files:
        scale = float(checkpoint.read("gating.logit_scale").float().reshape(-1)[0])
    stated = model_settings(checkpoint).get("gating_temperature")
    heat = float(stated) if stated is not None else temperature

    def apply(hidden_ND: Tensor) -> Tensor:
        hidden = hidden_ND.float()
        weights = (gate(hidden) / heat).softmax(-1) * scale
        return torch.cat([hidden @ worth_GD.T, weights], -1)

    return apply, num_objectives


def _gate(checkpoint: Checkpoint, device: str) -> nn.Sequential:
    """Linear layers with ReLU between, and normalisation by running statistics where it is kept."""
    from torch import nn

    numbers = _numbered(checkpoint, "gating.layers")
    names = [f"gating.layers.{number}" for number in numbers]
    if not names:
        raise ConfigError(f"head: gated, but {checkpoint.folder} has no gating.layers")
    modules: list[nn.Module] = []
    for name in names:
        if f"{name}.running_mean" in checkpoint.tensor_files:
            state = {
                key: checkpoint.read(f"{name}.{key}").float()
                for key in ("weight", "bias", "running_mean", "running_var")
            }
            norm = nn.BatchNorm1d(len(state["weight"]))
            norm.load_state_dict(state, strict=False)
            modules.append(norm)
            continue
        bias = f"{name}.bias" if f"{name}.bias" in checkpoint.tensor_files else None
        linear = _linear(HeadLayer(weight=f"{name}.weight", bias=bias), checkpoint, None)
        modules += [linear] if name == names[-1] else [linear, nn.ReLU()]
    return nn.Sequential(*modules).float().eval().requires_grad_(False).to(device)
