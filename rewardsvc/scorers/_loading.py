"""Loads models and tokenizers, and refuses what would score with weights nobody trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardsvc.errors import ConfigError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._model_config import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rewardsvc.engine.logprobs import LogitRule

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")

CLASSES_OF = {
    "AutoModel": "MODEL_MAPPING",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
}
"""Where transformers keeps the classes behind each of its auto classes."""

UNLIMITED = 1_000_000
"""Lengths above this are transformers' way to say that there is no limit."""

PROBE_TOKENS = 4


def load_tokenizer(config: ModelConfig, checkpoint: Checkpoint) -> Any:
    """The tokenizer of the configuration or of the checkpoint; None if the latter has none.

    Raises:
        ConfigError: If it cannot be loaded.
    """
    from transformers import AutoTokenizer

    source = config.tokenizer
    if source is None:
        source = str(checkpoint.folder)
        if not any((checkpoint.folder / name).is_file() for name in TOKENIZER_FILES):
            return None
    elif Path(source).is_absolute() and not Path(source).is_dir():
        raise ConfigError(f"tokenizer: {source!r} does not exist or is not a folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # of many kinds, and all of them mean the same
        raise ConfigError(f"tokenizer: {source!r} cannot be loaded: {error}") from error
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    return tokenizer


def load_model(
    auto_class: str, config: ModelConfig, checkpoint: Checkpoint, device: str, **overrides: Any
) -> Any:
    """A transformers model, in evaluation mode, on its device.

    transformers fills weights that a checkpoint lacks with random numbers and warns in the log; a
    reward from such a head is noise, so that is an error here.

    Args:
        auto_class: "AutoModel", "AutoModelForSequenceClassification", …
        config: What to load, and as what.
        checkpoint: Where from.
        device: Full name.
        overrides: Of the checkpoint's own configuration.

    Raises:
        ConfigError: If the checkpoint is of another architecture, or lacks weights; names them.
    """
    import transformers

    folder = str(checkpoint.folder)
    try:
        settings, tensors = _settings_and_tensors(config, checkpoint, overrides)
        attention = config.attention
        if attention == "auto" and getattr(settings, "attn_logit_softcapping", None):
            attention = "eager"
        options = {
            "config": settings,
            "dtype": config.dtype,
            "attn_implementation": None if attention == "auto" else attention,
            "output_loading_info": True,
        }
        if tensors is None:
            model, info = getattr(transformers, auto_class).from_pretrained(
                folder,
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                key_mapping=_renamed(config),
                **options,
            )
        else:
            model_class = getattr(transformers, CLASSES_OF[auto_class])[type(settings)]
            model, info = model_class.from_pretrained(None, state_dict=tensors, **options)
    except ConfigError:
        raise
    except Exception as error:  # of many kinds, and all of them mean the same
        raise ConfigError(f"model: {folder!r} cannot be loaded as {auto_class}: {error}") from error
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if missing:
        raise ConfigError(
            f"model: {folder!r} has no weights {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}, which {type(model).__name__} needs; it was not "
            f"trained as one, or needs another `head`. It has {_some(checkpoint.tensor_files)}"
        )
    return model.eval().requires_grad_(False).to(device)


def _settings_and_tensors(
    config: ModelConfig, checkpoint: Checkpoint, overrides: dict[str, Any]
) -> tuple[Any, dict[str, Tensor] | None]:
    """The model's configuration, and its tensors where transformers cannot read them itself."""
    import transformers

    from rewardsvc.scorers.known.internlm2 import MODEL_TYPE, as_llama

    stated = model_settings(checkpoint)
    if stated.get("model_type") == MODEL_TYPE and not config.trust_remote_code:
        return as_llama(stated, checkpoint.read_all())
    try:
        settings = transformers.AutoConfig.from_pretrained(
            str(checkpoint.folder), trust_remote_code=config.trust_remote_code, **overrides
        )
    except ValueError as error:
        raise ConfigError(
            f"model: {str(checkpoint.folder)!r} is of type {stated.get('model_type')!r}, which "
            f"transformers does not know without the checkpoint's own code; set "
            f"trust_remote_code: true if you trust it ({error})"
        ) from error
    if not checkpoint.bin_files:
        return settings, None
    tensors = checkpoint.read_all()
    for pattern, new in (_renamed(config) or {}).items():
        tensors = {re.sub(pattern, new, name): tensor for name, tensor in tensors.items()}
    return settings, tensors


def _renamed(config: ModelConfig) -> dict[str, str] | None:
    """Patterns of tensor names and what takes their place."""
    return None if config.weight_prefix is None else {rf"^{re.escape(config.weight_prefix)}\.": ""}


def _some(names: Any) -> str:
    """The names that are likely heads: outside the layers."""
    heads = [name for name in names if ".layer" not in name and ".h." not in name]
    return ", ".join(sorted(heads)[:10])


def model_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's `config.json`.

    Raises:
        ConfigError: If there is none, or it is not a JSON object.
    """
    file = checkpoint.folder / "config.json"
    try:
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {file} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"model: {file} is not a JSON object")
    return settings


def has_architecture(checkpoint: Checkpoint, suffix: str) -> bool:
    """Whether the checkpoint says that it is a model class of this ending."""
    architectures = model_settings(checkpoint).get("architectures") or ()
    return any(str(name).endswith(suffix) for name in architectures)


def max_length(config: ModelConfig, model: Any, tokenizer: Any) -> int:
    """Tokens that the model takes: as configured, else the least limit that the checkpoint states.

    Raises:
        ConfigError: If more is configured than a learned table of positions has.
    """
    text_config = model.config.get_text_config()
    limits = [getattr(text_config, "max_position_embeddings", None) or UNLIMITED]
    num_positions = _num_learned_positions(model)
    if num_positions is not None:
        limits = [num_positions]
        if config.max_length is not None and config.max_length > num_positions:
            raise ConfigError(
                f"max_length: {config.max_length}, but the model has {num_positions} positions"
            )
    if config.max_length is not None:
        return config.max_length
    if tokenizer is not None:
        limits.append(tokenizer.model_max_length)
    return int(min(*limits, UNLIMITED))


def _num_learned_positions(model: Any) -> int | None:
    """Rows of a learned table of absolute positions that a token can use; None without one."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("position_embeddings", "wpe", "embed_positions"):
            rows = getattr(module, "num_embeddings", None)
            if rows is None:
                return None
            # RoBERTa counts from behind the padding index, OPT from an offset.
            padding, offset = getattr(module, "padding_idx", None), getattr(module, "offset", 0)
            return int(rows - (padding + 1 if padding is not None else 0) - offset)
    return None


def vocab_size(model: Any) -> int:
    """Rows of the input embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def pad_id(model: Any) -> int:
    """What rows are filled up with; some models take positions from it."""
    found = getattr(model.config.get_text_config(), "pad_token_id", None)
    return int(found) if found is not None and 0 <= found < vocab_size(model) else 0


def logit_rule(model: Any) -> LogitRule:
    """What a causal language model does to its logits, as its configuration says."""
    from rewardsvc.engine.logprobs import LogitRule

    settings = model.config.get_text_config()
    scale = getattr(settings, "logit_scale", None) or 1.0
    divisor = getattr(settings, "logits_scaling", None) or 1.0
    softcap = getattr(settings, "final_logit_softcapping", None)
    return LogitRule(scale=scale / divisor, softcap=softcap)


def probe_ids(model: Any) -> NDArray[np.int32]:
    """A few token ids that are not padding, to try a model with: int32 [T]."""
    ids = [i for i in range(min(vocab_size(model), 2 * PROBE_TOKENS)) if i != pad_id(model)]
    return np.asarray(ids[-PROBE_TOKENS:], np.int32)


def check_same(ours: NDArray[np.float32], plain: Any, model: Any) -> None:
    """Compares numbers read from hidden states with those of the model's own forward.

    Some architectures do more than apply a head to the last hidden states (they cap or scale
    logits, normalise, or pool); served without it, every score would be slightly wrong.

    Raises:
        ConfigError: If they differ by more than rounding.
    """
    import torch

    expected = plain.detach().float().cpu().numpy()
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not np.allclose(ours, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise ConfigError(
            f"model: {type(model).__name__} does more than apply its head to the last hidden "
            f"states ({ours.ravel()[:3]} against {expected.ravel()[:3]}); it cannot be served yet"
        )
