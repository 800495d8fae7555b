"""What every trainer's configuration has in common, and how a file becomes one.

Nothing here imports torch: a configuration can be checked, and `--help` printed, without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewardsvc.errors import ConfigError
from rewardsvc.validation import explain
from rewardsvc.yaml_file import parse_yaml, read_yaml


class LoraSection(BaseModel):
    """Adapters to learn in place of the model's own weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(default=16, ge=1, description="Rank: width of the adapters.")
    alpha: float = Field(
        default=32.0, gt=0, description="What adapters add is scaled by alpha / r; often 2 r."
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Of the adapters' inputs. Online algorithms need log-probs without chance: 0.",
    )
    target_modules: str | list[str] = Field(
        default="all-linear",
        min_length=1,
        description="Which modules. all-linear: every linear one but the heads. A list: those "
        "whose names end so, such as [q_proj, v_proj]. Other text: a regular expression.",
    )


class TrainConfigBase(BaseModel):
    """The fields that all trainers share. Unknown keys are errors.

    `model_config_dict` is written `config:` in the file; pydantic reserves the shorter name.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=()
    )

    model: str | None = Field(
        default=None, description="Folder or hub id of the model to start from."
    )
    model_config_dict: dict[str, Any] | None = Field(
        default=None,
        alias="config",
        description="A transformers config with its `model_type`, to start from random weights.",
    )
    tokenizer: str | None = Field(
        default=None, description="Folder or hub id of the tokenizer. Default: that of `model`."
    )
    output_dir: Path = Field(description="Where logs, checkpoints and the final model go.")
    seed: int = Field(default=0, ge=0, description="Of initialisation, order of data, sampling.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps in all; overrides a number of epochs."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Of the weights while training."
    )
    device: str = Field(
        default="auto", description='"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".'
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that ships with the model."
    )
    lora: LoraSection | None = Field(
        default=None,
        description="Learn low-rank adapters of these r, alpha, dropout and target_modules (`{}`: "
        "the defaults) and freeze the model. Needs the extra `lora`.",
    )

    learning_rate: float = Field(default=1e-5, gt=0, description="At its peak.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="Shape of the learning rate after the warm-up."
    )
    min_lr_ratio: float = Field(
        default=0.0, ge=0, le=1, description="The decay ends at this share of `learning_rate`."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up.")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's beta1.")
    adam_beta2: float = Field(default=0.99, ge=0, lt=1, description="AdamW's beta2.")
    adam_eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decoupled decay of matrices; never of norms and biases."
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Gradients are scaled down to this global L2 norm."
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Micro-batches in one optimizer step."
    )

    activation_checkpointing: bool = Field(
        default=False,
        description="Keep only what goes from layer to layer, and compute the rest again in the "
        "backward pass: far less memory for about a third more computation.",
    )
    fsdp: bool | None = Field(
        default=None,
        description="With several processes: divide weights, gradients and moments among them "
        "(FSDP2), in place of a copy in each (DDP). None: as `accelerate launch` was told.",
    )
    collective_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        description="With several processes: how long one waits for the others.",
    )

    save_steps: int = Field(default=100, ge=1, description="Steps from checkpoint to checkpoint.")
    save_total_limit: int = Field(default=2, ge=1, description="Checkpoints to keep.")
    logging_steps: int = Field(
        default=10, ge=1, description="Steps between printed lines where there is no terminal."
    )
    resume: bool | Path = Field(
        default=False,
        description="true: go on from the newest checkpoint in `output_dir`, if there is one. "
        "A path: go on from that checkpoint.",
    )

    @model_validator(mode="after")
    def _one_source_of_the_model(self) -> TrainConfigBase:
        if (self.model is None) == (self.model_config_dict is None):
            raise ValueError(
                "give either `model` (a folder or hub id) or `config` (to start from random "
                f"weights): model={self.model!r}, config={self.model_config_dict!r}"
            )
        if self.model_config_dict is not None:
            if "model_type" not in self.model_config_dict:
                raise ValueError("config.model_type is missing; for instance `model_type: llama`")
            if self.tokenizer is None:
                raise ValueError("tokenizer is missing; a model built from `config` has none")
        return self


C = TypeVar("C", bound=BaseModel)


def load_config(path: str | Path, cls: type[C], overrides: Sequence[str] = ()) -> C:
    """Reads a YAML file into `cls`.

    Args:
        path: A YAML file with one mapping.
        cls: The configuration's class.
        overrides: "key=value" pairs that win over the file; values are YAML, and dots reach into
            mappings: `learning_rate=1e-4`, `config.hidden_size=64`.

    Raises:
        ConfigError: Names the file, the field, its value and the fix.
    """
    path = Path(path)
    loaded = read_yaml(path)
    if loaded is None:
        loaded = {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a mapping `field: value` is needed, got {loaded!r}")
    for override in overrides:
        _apply_override(loaded, override)
    try:
        return cls.model_validate(loaded)
    except ValidationError as error:
        lines = explain(error, cls)
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write it as key=value")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is {child!r}, not a mapping")
        node = child
    node[leaf] = value
