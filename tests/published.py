"""Tiny random checkpoints in the layouts of published models, and plain computations on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny_models
import tiny_tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

WIDTH = int(tiny_models.SHAPE["hidden_size"])

LLAMA3_NAMES = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA2_NAMES = ("<start_of_turn>", "<end_of_turn>")
GEMMA2_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
)


def tokenizer(kind: str = "byte-level", names: Sequence[str] = (), template: str = "") -> Any:
    """A tokenizer of a kind with further control tokens and another template."""
    made = tiny_tokenizers.make(kind, names)
    if template:
        made.chat_template = template
    return made


def llama3() -> Any:
    """A tokenizer with Llama 3's turns."""
    return tokenizer("byte-level", LLAMA3_NAMES, LLAMA3_TEMPLATE)


def tensors(**shapes: Sequence[int]) -> dict[str, torch.Tensor]:
    """Random tensors; `__` in a name stands for a dot."""
    generator = torch.Generator().manual_seed(7)
    return {
        name.replace("__", "."): torch.randn(*shape, generator=generator) * 0.4
        for name, shape in shapes.items()
    }


def publish(
    folder: Path,
    family: str,
    *,
    made: Any,
    head: Mapping[str, torch.Tensor] | None = None,
    prefix: str = "model.",
    auto_class: str = "AutoModel",
    stated: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Writes a checkpoint.

    Args:
        folder: Its name is the model's.
        family: Of `tiny_models.FAMILIES`.
        made: The tokenizer.
        head: Tensors beside the base model's.
        prefix: Of the base model's tensors, if `auto_class` is "AutoModel".
        auto_class: What is written.
        stated: Keys of `config.json`.
        config: Of the model.
    """
    sizes = {"vocab_size": len(made), "max_position_embeddings": 512, "sliding_window": None}
    if family not in ("mistral", "qwen2", "qwen3"):
        del sizes["sliding_window"]
    tiny_models.write_checkpoint(folder, family, auto_class, tokenizer=made, **sizes | config)
    file = folder / "model.safetensors"
    held = load_file(file)
    if auto_class == "AutoModel":
        held = {prefix + name: tensor for name, tensor in held.items()}
    save_file(held | dict(head or {}), file, metadata={"format": "pt"})
    state(folder, **(stated or {}))
    return folder


def state(folder: Path, **stated: Any) -> None:
    """Sets keys of `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | stated))


def base_model(folder: Path, prefix: str = "model.") -> Any:
    """The base model as plain transformers computes it, whatever its tensors are called."""
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="eager")
    model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    held = load_file(folder / "model.safetensors")
    model.load_state_dict(
        {n.removeprefix(prefix): t for n, t in held.items() if n.startswith(prefix)}
    )
    return model.eval()


@torch.inference_mode()
def hidden_states(folder: Path, ids: Sequence[int], prefix: str = "model.") -> torch.Tensor:
    """float32 [T, D]."""
    found = base_model(folder, prefix)(input_ids=torch.tensor([list(ids)])).last_hidden_state[0]
    assert isinstance(found, torch.Tensor)
    return found


@torch.inference_mode()
def logits(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    """Of a causal language model, float32 [T, V]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = model(input_ids=torch.tensor([list(ids)])).logits[0]
    assert isinstance(found, torch.Tensor)
    return found
