"""Small tokenizers of each kind that published models have, trained on a few sentences.

Each has the control tokens of `CONTROL` and a ChatML-like template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The duck lays 16 eggs a day. She eats three for breakfast, and bakes muffins with four.",
    "Step 1: 16 - 3 - 4 = 9.\n\nStep 2: 9 * 2 = 18. The answer is: 18",
    "def f(x):\n    return x < 3 or x > 5  # <b>not</b> special, [just] text | user assistant",
    "Größe, naïve, 東京, и так далее; emoji 🙂 too",
    "и so on ки и + - " * 9,
    "Step 1: one ки\n\nStep 2: two ки\n\nthree + four - five и\n\nsix + seven - eight и\n\n",
] * 4
CONTROL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<extra_0>")
LEFT, RIGHT = "<mask>", "<|end|>"
"""Control tokens that swallow white space before or behind themselves."""

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_level() -> Tokenizer:
    """As Qwen and Llama 3."""
    backend = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    return backend


def _byte_fallback() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    special = ["<unk>", *CONTROL[1:3], *(f"<0x{i:02X}>" for i in range(256))]
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = BpeTrainer(vocab_size=600, special_tokens=special)
    # A newline is a byte to Llama's tokenizer.
    backend.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    # The trainer makes control tokens of the bytes as well; published models do not.
    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))


def _metaspace() -> Tokenizer:
    """As newer conversions of Llama 2 and Mistral: only the first word gets a space."""
    backend = _byte_fallback()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return backend


def _prepended() -> Tokenizer:
    """As older ones: every stretch between control tokens gets a space."""
    backend = _metaspace()
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return backend


def _unigram() -> Tokenizer:
    """As DeBERTa-v3 and T5: control tokens are in the vocabulary, and characters match them."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", *CONTROL, LEFT]
    backend.train_from_iterator(
        CORPUS, UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")
    )
    return backend


def _word_piece() -> Tokenizer:
    """As BERT."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<unk>", *CONTROL]
    backend.train_from_iterator(CORPUS, WordPieceTrainer(vocab_size=400, special_tokens=special))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 2), ("</s>", 3)],
    )
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": _byte_level,
    "metaspace": _metaspace,
    "prepended": _prepended,
    "unigram": _unigram,
    "word-piece": _word_piece,
}


@cache
def _serialised(kind: str) -> str:
    return str(KINDS[kind]().to_str())


def make(kind: str, names: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A fresh tokenizer of a kind, with further control tokens."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_serialised(kind)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[
            *CONTROL[3:],
            *names,
            AddedToken(LEFT, lstrip=True, normalized=False),
            AddedToken(RIGHT, rstrip=True, normalized=False),
        ],
        **({"unk_token": "<unk>"} if kind != "byte-level" else {}),
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
