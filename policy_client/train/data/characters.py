"""A tokenizer with one token a character, for small policies trained from nothing."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """A tokenizer over the characters of `alphabet`; `save_pretrained` writes it.

    The ids 0 to 3 are PAD, BOS, EOS and the unknown character. Text gets neither BOS nor EOS by
    itself.

    Args:
        alphabet: Every character that the task uses; repeats are ignored.

    Raises:
        ValueError: If it is empty.
    """
    if not alphabet:
        raise ValueError("alphabet is empty; give the characters that the task uses")
    tokens = [PAD, BOS, EOS, UNKNOWN, *dict.fromkeys(alphabet)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
