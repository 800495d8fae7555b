"""Models in and out: a policy or a reward model from a folder, the hub, or a config alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.config_base import TrainConfigBase
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.lora import add_adapters, has_adapters, merged_state
from rewardsvc.policy_client.train.sharding import is_sharded, whole_state

ModelAndTokenizer: TypeAlias = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def choose_device(name: str) -> torch.device:
    """The device of a configuration's `device`.

    Raises:
        ConfigError: If this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is none; use auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name!r}, and this machine has {torch.cuda.device_count()} CUDA devices; "
            "use auto or cpu"
        )
    return device


def load_tokenizer(config: TrainConfigBase) -> PreTrainedTokenizerBase:
    """The tokenizer of `config`; EOS pads where it has no padding token of its own.

    Raises:
        ConfigError: If it cannot be loaded.
    """
    source = config.tokenizer or config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer: {source!r} cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"tokenizer: {source!r} has neither a padding token nor EOS; add one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(config: TrainConfigBase) -> ModelAndTokenizer:
    """The causal language model of `config` on its device, in eval mode, and its tokenizer.

    With adapters where `config.lora` says so, as the models of the functions below.

    Random weights come from torch's global generator: seed it first.

    Raises:
        ConfigError: If either cannot be loaded; names the field.
    """
    tokenizer = load_tokenizer(config)
    return _load(AutoModelForCausalLM, config, tokenizer), tokenizer


def load_reward_model(config: TrainConfigBase) -> ModelAndTokenizer:
    """The model of `config` with one scalar head, on its device, in eval mode, and its tokenizer.

    A policy's checkpoint gives its body; the head is then new, from torch's global generator.

    Raises:
        ConfigError: If either cannot be loaded; names the field.
    """
    tokenizer = load_tokenizer(config)
    model = _load(AutoModelForSequenceClassification, config, tokenizer, num_labels=1)
    return model, tokenizer


def load_process_reward_model(config: TrainConfigBase) -> ModelAndTokenizer:
    """The model of `config` with two labels a token, on its device, in eval mode; its tokenizer.

    Label 1 is a right step. A policy's checkpoint gives its body; the head is then new.

    Raises:
        ConfigError: If either cannot be loaded; names the field.
    """
    tokenizer = load_tokenizer(config)
    model = _load(AutoModelForTokenClassification, config, tokenizer, num_labels=2)
    return model, tokenizer


def sequence_rewards(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """The scalar that a reward model gives each sequence, as the service's `orm` computes it.

    A causal model is read at its last *attended* token. The forward pass of transformers looks for
    the last token that is not padding by its id, which is another one wherever EOS also pads.

    Args:
        model: From `load_reward_model`.
        input_ids: int64 [B, T], padded on the right.
        attention_mask: int64 [B, T], 1 at real tokens; at least one a row.

    Returns:
        float32 [B], with a gradient.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Module):  # an encoder, which pools by itself
        return model(**inputs).logits.squeeze(-1).float()  # type: ignore[no-any-return]
    hidden_BTH = model.base_model(**inputs, use_cache=False).last_hidden_state
    last_B = attention_mask.sum(dim=1) - 1
    rows_B = torch.arange(len(last_B), device=last_B.device)
    return head(hidden_BTH[rows_B, last_B]).squeeze(-1).float()  # type: ignore[no-any-return]


def save_pretrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    world: World | None = None,
) -> Path:
    """Saves both as transformers, vLLM and the service's `orm` and `causal_lm` load them.

    The adapters of an adapted model are merged into what is saved, and stay apart in `model`.
    Written beside and renamed, so that nobody who loads `directory` meanwhile finds half of it.

    Args:
        model: Its weights may be divided among processes.
        tokenizer: Of the model.
        directory: Replaced if it exists.
        world: Of this process; all processes must call, and the first one writes.

    Returns:
        `directory`.
    """
    world, directory = world or World(), Path(directory)
    state: dict[str, torch.Tensor] | None = None  # what transformers finds by itself
    if has_adapters(model):
        state = merged_state(model)
    elif is_sharded(model):
        state = whole_state(model)
    world.settled(lambda: _write(model, tokenizer, directory, state) if world.is_main else None)
    return directory


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    state: dict[str, torch.Tensor] | None,
) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, state_dict=state)
    tokenizer.save_pretrained(temporary)
    if directory.exists():
        outdated = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(outdated, ignore_errors=True)
        directory.rename(outdated)
        temporary.rename(directory)
        shutil.rmtree(outdated)
    else:
        temporary.rename(directory)


def _load(
    auto_class: Any, config: TrainConfigBase, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> PreTrainedModel:
    device = choose_device(config.device)
    dtype = getattr(torch, config.dtype)
    new: set[str] = set()
    if config.model is not None:
        try:
            model, report = auto_class.from_pretrained(
                config.model,
                dtype=dtype,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
                **options,
            )
            new |= set(report["missing_keys"])
        except (OSError, ValueError) as error:
            raise ConfigError(f"model: {config.model!r} cannot be loaded: {error}") from error
    else:
        shape = _config_from_dict(config.model_config_dict or {}, tokenizer, **options)
        model = auto_class.from_config(shape, dtype=dtype)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ConfigError(
            f"tokenizer: {len(tokenizer)} tokens, and the model has embeddings for "
            f"{model.get_input_embeddings().num_embeddings}; use the model's own tokenizer"
        )
    # Sequence classifiers find the last token of a padded row through this.
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    model.to(device)
    if config.lora is not None:
        if options:  # a head of ours: it may be new, and is small
            trunk = {id(parameter) for parameter in model.base_model.parameters()}
            new |= {name for name, one in model.named_parameters() if id(one) not in trunk}
        add_adapters(model, config.lora, learned=new)
    return model  # type: ignore[no-any-return]


def _config_from_dict(
    fields: dict[str, Any], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> PretrainedConfig:
    """A transformers config; vocabulary and special tokens are the tokenizer's unless given."""
    given = dict(fields)
    model_type = given.pop("model_type")
    from_tokenizer = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    try:
        return AutoConfig.for_model(model_type, **{**from_tokenizer, **given, **options})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config: {fields!r} cannot be built: {error}") from error
