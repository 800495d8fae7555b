"""Writes tiny random checkpoints with a small tokenizer to disk, for tests that load models.

Everything is seeded, so the same arguments give the same weights. `import tiny_models` works in
every test: the test folder is on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (*"abcdefghijklmnopqrstuvwxyz0123456789+-*/=.,:?!", "step", "good", "bad")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "[CLS]", "[SEP]", "<extra_0>", "<|user|>", "<|bot|>")
VOCAB = {token: i for i, token in enumerate((*SPECIAL, " ", "\n", *WORDS))}
VOCAB_SIZE = len(VOCAB)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}<|user|>{% elif m['role'] == 'assistant' %}<|bot|>"
    "{% else %}{{ raise_exception('unknown role ' + m['role']) }}{% endif %}"
    "{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)
"""Writes its own BOS, as the templates of published models do."""

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 128,
    "pad_token_id": VOCAB["<pad>"],
}
GROUPED = {"num_key_value_heads": 2, "bos_token_id": VOCAB["<s>"], "eos_token_id": VOCAB["</s>"]}

FAMILIES: dict[str, Callable[..., Any]] = {
    "bert": lambda **kw: transformers.BertConfig(**SHAPE | kw),
    "roberta": lambda **kw: transformers.RobertaConfig(**SHAPE | kw),
    "llama": lambda **kw: transformers.LlamaConfig(**SHAPE | GROUPED | kw),
    "mistral": lambda **kw: transformers.MistralConfig(
        **SHAPE | GROUPED | {"sliding_window": 8} | kw
    ),
    "qwen2": lambda **kw: transformers.Qwen2Config(**SHAPE | GROUPED | kw),
    "qwen3": lambda **kw: transformers.Qwen3Config(**SHAPE | GROUPED | {"head_dim": 8} | kw),
    "gemma2": lambda **kw: transformers.Gemma2Config(
        **SHAPE | GROUPED | {"head_dim": 8, "final_logit_softcapping": 2.0} | kw
    ),
    "granite": lambda **kw: transformers.GraniteConfig(
        **SHAPE | GROUPED | {"logits_scaling": 3.0} | kw
    ),
}
ENCODERS = ("bert", "roberta")
"""Families with bidirectional attention; the others are causal."""


def tiny_tokenizer(*, encoder: bool = False, chat: bool = True) -> PreTrainedTokenizerFast:
    """A character-level tokenizer that knows a few words; unknown characters are `<unk>`.

    Args:
        encoder: `[CLS] a [SEP] b [SEP]` around texts in place of a BOS before them.
        chat: Whether it has `CHAT_TEMPLATE`.
    """
    backend = Tokenizer(models.WordLevel(VOCAB, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(_split_pattern(), behavior="isolated")
    if encoder:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, VOCAB[name]) for name in ("[CLS]", "[SEP]")],
        )
    else:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", VOCAB["<s>"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=128,
        **(
            {"cls_token": "[CLS]", "sep_token": "[SEP]"}
            if encoder
            else {"bos_token": "<s>", "eos_token": "</s>"}
        ),
        additional_special_tokens=["<extra_0>", "<|user|>", "<|bot|>"],
    )
    if chat and not encoder:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _split_pattern() -> Any:
    from tokenizers import Regex

    return Regex(r"step|good|bad|[\s\S]")


def write_checkpoint(
    folder: Path,
    family: str,
    auto_class: str,
    *,
    seed: int = 0,
    change: Callable[[Any], None] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **config: Any,
) -> Path:
    """Writes a random model and a tokenizer.

    Args:
        folder: Where to; made if need be.
        family: A key of `FAMILIES`.
        auto_class: For instance "AutoModelForSequenceClassification".
        seed: Of the weights.
        change: Called with the model before it is saved.
        tokenizer: None is `tiny_tokenizer` in the form that fits the family.
        config: Overrides of the model's configuration, for instance `num_labels=1`.

    Returns:
        `folder`.
    """
    torch.manual_seed(seed)
    model = getattr(transformers, auto_class).from_config(FAMILIES[family](**config))
    with torch.no_grad():
        # transformers starts with a deviation of 0.02, with which all scores are alike.
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
        if model.config.pad_token_id is not None:
            model.get_input_embeddings().weight[model.config.pad_token_id] = 0.5
    if change is not None:
        with torch.no_grad():
            change(model)
    model.eval().save_pretrained(folder)
    (tokenizer or tiny_tokenizer(encoder=family in ENCODERS)).save_pretrained(folder)
    return folder


def write_reward_model(folder: Path, family: str = "llama", **options: Any) -> Path:
    """A sequence-classification checkpoint with one label; see `write_checkpoint`."""
    return write_checkpoint(
        folder, family, "AutoModelForSequenceClassification", **{"num_labels": 1} | options
    )


def write_causal_lm(folder: Path, family: str = "llama", **options: Any) -> Path:
    """A causal language model; see `write_checkpoint`."""
    return write_checkpoint(folder, family, "AutoModelForCausalLM", **options)


def add_tensors(
    folder: Path, tensors: dict[str, torch.Tensor], *, drop: Sequence[str] = ()
) -> Path:
    """Adds tensors to a checkpoint's one safetensors file, and drops others; returns `folder`."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    kept = {name: t for name, t in load_file(file).items() if name not in drop}
    save_file(kept | tensors, file, metadata={"format": "pt"})
    return folder
