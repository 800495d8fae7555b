"""InternLM2 as a Llama: the same network with other names and one fused matrix.

transformers has no class of its own for it, and the checkpoints' own code is not run.

Source: vllm-project/vllm, vllm/model_executor/models/internlm2.py, for the layout of `wqkv`: for
each key head its query heads, then the key, then the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rewardsvc.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPE = "internlm2"

RENAMED = {
    "tok_embeddings": "embed_tokens",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}

FUSED = "attention.wqkv"

TAKEN_OVER = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_theta",
)


def as_llama(
    stated: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Any, dict[str, Any]]:
    """A Llama configuration and its tensors.

    Args:
        stated: The checkpoint's `config.json`.
        tensors: Its tensors.

    Raises:
        ConfigError: If it scales positions in a way that only its own code knows.
    """
    from transformers import LlamaConfig

    scaling = stated.get("rope_scaling")
    # Dynamic scaling begins behind the longest position, and no sample is longer than that.
    if scaling and scaling.get("type", scaling.get("rope_type")) != "dynamic":
        raise ConfigError(f"model: rope_scaling {scaling!r} of InternLM2 is not supported")
    kept = {key: stated[key] for key in TAKEN_OVER if key in stated}
    config = LlamaConfig(**kept, attention_bias=bool(stated.get("bias", False)))
    num_keys = int(config.num_key_value_heads or config.num_attention_heads)
    group = config.num_attention_heads // num_keys
    width = config.hidden_size // config.num_attention_heads
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not name.startswith("model."):
            continue
        short = name.removeprefix("model.")
        if FUSED in short:
            heads = tensor.reshape(num_keys, group + 2, width, *tensor.shape[1:])
            parts = {"q": heads[:, :group], "k": heads[:, group], "v": heads[:, group + 1]}
            for letter, part in parts.items():
                target = short.replace(FUSED, f"self_attn.{letter}_proj")
                found[target] = part.reshape(-1, *tensor.shape[1:]).contiguous()
            continue
        for old, new in RENAMED.items():
            short = short.replace(old, new)
        found[short] = tensor
    return config, found
