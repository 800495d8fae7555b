"""How samples become tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models

from rewardsvc.errors import ConfigError, ItemErrorCode, ItemFailure
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._text import SampleEncoder, Tokens
from rewardsvc.scoring import Message, Sample

BOS, EOS, USER, BOT = (tiny_models.VOCAB[t] for t in ("<s>", "</s>", "<|user|>", "<|bot|>"))


def ids_of(text: str) -> list[int]:
    return [tiny_models.VOCAB[char] for char in text]


def encoder(
    *, tokenizer: Any = None, max_length: int = 100, pair: bool = False, **config: Any
) -> SampleEncoder:
    return SampleEncoder(
        tokenizer or tiny_models.tiny_tokenizer(),
        ModelConfig(type="any", model="any", **config),
        max_length=max_length,
        vocab_size=tiny_models.VOCAB_SIZE,
        pair=pair,
    )


def completion_of(tokens: Tokens) -> list[int]:
    return tokens.ids[tokens.in_completion].tolist()


def test_text_is_prompt_and_completion_with_the_tokenizers_bos() -> None:
    tokens = encoder().encode(Sample(prompt="ab", completion="cd"))
    assert tokens.ids.tolist() == [BOS, *ids_of("abcd")]
    assert tokens.ids.dtype == np.int32
    assert completion_of(tokens) == ids_of("cd")


def test_bos_that_the_text_brings_is_not_doubled() -> None:
    tokens = encoder().encode(Sample(prompt="<s>ab", completion="cd"))
    assert tokens.ids.tolist() == [BOS, *ids_of("abcd")]


def test_bos_of_the_chat_template_is_not_doubled() -> None:
    sample = Sample(prompt=(Message("user", "ab"),), completion="cd")
    tokens = encoder().encode(sample)
    assert tokens.ids.tolist() == [BOS, USER, *ids_of("ab"), EOS, BOT, *ids_of("cd"), EOS]
    assert completion_of(tokens) == [*ids_of("cd"), EOS]


def test_template_without_bos_gets_none_unless_asked() -> None:
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    sample = Sample(prompt=(Message("user", "ab"),), completion="cd")
    assert encoder(tokenizer=tokenizer).encode(sample).ids[0] != BOS
    assert encoder(tokenizer=tokenizer, bos="always").encode(sample).ids[0] == BOS


@pytest.mark.parametrize("text", ["ab", "<s>ab", "<s><s>ab"])
@pytest.mark.parametrize(("bos", "num_bos"), [("auto", 1), ("always", 1), ("never", 0)])
def test_bos_option_holds_whatever_the_text_brings(text: str, bos: str, num_bos: int) -> None:
    tokens = encoder(bos=bos).encode(Sample(prompt=text, completion="c"))
    assert tokens.ids.tolist() == [BOS] * num_bos + ids_of("abc")
    assert completion_of(tokens) == ids_of("c")


def test_chat_is_chosen_for_plain_text_only_if_configured() -> None:
    sample = Sample(prompt="ab", completion="cd")
    assert USER not in encoder(input="auto").encode(sample).ids
    as_chat = encoder(input="chat").encode(sample)
    as_messages = encoder().encode(
        Sample(prompt=(Message("user", "ab"),), completion=(Message("assistant", "cd"),))
    )
    assert as_chat.ids.tolist() == as_messages.ids.tolist()


def test_completion_is_found_behind_what_the_template_puts_before_it() -> None:
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
        "{% else %}<|bot|>xyz {{ m['content'] | trim }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|bot|>{% endif %}"
    )
    tokens = encoder(tokenizer=tokenizer, input="chat").encode(Sample(prompt="a", completion=" b "))
    assert completion_of(tokens) == ids_of("b")


def test_text_template_is_filled_in_without_reading_braces_of_the_text() -> None:
    subject = encoder(text_template="q: {prompt} a: {completion}!")
    tokens = subject.encode(Sample(prompt="{completion}", completion="{prompt}"))
    unknown = tiny_models.VOCAB["<unk>"]
    inside = [tiny_models.VOCAB.get(char, unknown) for char in "{prompt}"]
    assert completion_of(tokens) == [*inside, *ids_of("!")]


@pytest.mark.parametrize("template", ["{prompt}", "{completion} {completion}"])
def test_text_template_needs_the_completion_once(template: str) -> None:
    with pytest.raises(ValueError, match="must contain {completion} once"):
        ModelConfig(type="any", model="any", text_template=template)


def test_token_ids_are_taken_as_they_are() -> None:
    tokens = encoder().encode(Sample(prompt=(5, 6), completion=(BOS, 7)))
    assert tokens.ids.tolist() == [5, 6, BOS, 7]
    assert completion_of(tokens) == [BOS, 7]


def test_token_ids_of_one_side_go_with_text_of_the_other() -> None:
    tokens = encoder().encode(Sample(prompt="ab", completion=(7, 8)))
    assert tokens.ids.tolist() == [*ids_of("ab"), 7, 8]


def test_token_ids_need_no_tokenizer_and_text_does() -> None:
    config = ModelConfig(type="any", model="any")
    subject = SampleEncoder(None, config, max_length=10, vocab_size=20)
    assert subject.encode(Sample(prompt=(1,), completion=(2,))).ids.tolist() == [1, 2]
    for completion in ("ab", (Message("assistant", "ab"),)):
        with pytest.raises(ItemFailure, match="no tokenizer|has no chat template") as caught:
            subject.encode(Sample(completion=completion))
        assert caught.value.error.code is ItemErrorCode.INVALID_SAMPLE


@pytest.mark.parametrize("bad", [-1, tiny_models.VOCAB_SIZE, 2**40])
def test_id_out_of_the_vocabulary_is_named(bad: int) -> None:
    with pytest.raises(ItemFailure, match=f"token id {bad} is out of") as caught:
        encoder().encode(Sample(prompt=(1,), completion=(2, bad)))
    assert caught.value.error.code is ItemErrorCode.INVALID_SAMPLE


def test_text_pair_has_the_types_and_separators_of_the_tokenizer() -> None:
    tokenizer = tiny_models.tiny_tokenizer(encoder=True)
    tokens = encoder(tokenizer=tokenizer, pair=True).encode(Sample(prompt="ab", completion="c"))
    expected = tokenizer("ab", "c", return_token_type_ids=True)
    assert tokens.ids.tolist() == expected["input_ids"]
    assert tokens.type_ids.tolist() == expected["token_type_ids"]
    assert completion_of(tokens)[0] == tiny_models.VOCAB["c"]


def test_empty_completion_is_a_sample_and_nothing_at_all_is_not() -> None:
    bare = encoder(bos="never")
    tokens = bare.encode(Sample(prompt="ab", completion=""))
    assert tokens.ids.tolist() == ids_of("ab")
    assert completion_of(tokens) == []
    with pytest.raises(ItemFailure, match="there is no token to score") as caught:
        bare.encode(Sample(prompt="", completion=""))
    assert caught.value.error.code is ItemErrorCode.INVALID_SAMPLE


@pytest.mark.parametrize("empty", [(), ""])
def test_empty_sides_of_any_kind_are_empty(empty: Any) -> None:
    tokens = encoder().encode(Sample(prompt=empty, completion="ab"))
    assert tokens.ids.tolist() == [BOS, *ids_of("ab")]
    tokens = encoder().encode(Sample(prompt=(3,), completion=empty))
    assert tokens.ids.tolist() == [3]


def test_eos_is_appended_once() -> None:
    subject = encoder(append_eos=True)
    for completion in ("b", "b</s>"):
        tokens = subject.encode(Sample(prompt="a", completion=completion))
        assert tokens.ids.tolist() == [BOS, *ids_of("ab"), EOS]
        assert completion_of(tokens)[-1] == EOS


def test_too_long_sample_is_an_error_that_names_both_lengths_and_the_option() -> None:
    with pytest.raises(ItemFailure, match="11 tokens.*takes 8.*truncation_side") as caught:
        encoder(max_length=8).encode(Sample(prompt="abcde", completion="fghij"))
    assert caught.value.error.code is ItemErrorCode.TOO_LONG


@pytest.mark.parametrize(("side", "kept"), [("left", "defghij"), ("right", "abcdefg")])
def test_truncation_cuts_the_side_it_is_told_and_keeps_special_tokens(side: str, kept: str) -> None:
    sample = Sample(prompt="abcde", completion="fghij")
    causal = encoder(max_length=8, truncation_side=side).encode(sample)
    assert causal.ids.tolist() == [BOS, *ids_of(kept)]
    bidirectional = encoder(
        tokenizer=tiny_models.tiny_tokenizer(encoder=True), max_length=9, truncation_side=side
    ).encode(sample)
    cls, sep = tiny_models.VOCAB["[CLS]"], tiny_models.VOCAB["[SEP]"]
    assert bidirectional.ids.tolist() == [cls, *ids_of(kept), sep]


def test_bos_of_a_chat_survives_truncation_from_the_left() -> None:
    chat = encoder(input="chat", max_length=4, truncation_side="left")
    tokens = chat.encode(Sample(prompt="abcde", completion="fg"))
    assert tokens.ids.tolist() == [BOS, *ids_of("fg"), EOS]


def test_truncation_and_padding_stored_with_the_tokenizer_are_ignored() -> None:
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokens = encoder(tokenizer=tokenizer).encode(Sample(prompt="abc", completion="d"))
    assert tokens.ids.tolist() == [BOS, *ids_of("abcd")]


def test_text_that_is_not_unicode_is_an_error_of_that_sample() -> None:
    with pytest.raises(ItemFailure, match="not valid Unicode") as caught:
        encoder().encode(Sample(prompt="a", completion="\ud800"))
    assert caught.value.error.code is ItemErrorCode.INVALID_SAMPLE


def test_messages_that_the_template_refuses_are_an_error_of_that_sample() -> None:
    with pytest.raises(ItemFailure, match="unknown role pirate") as caught:
        encoder().encode(Sample(prompt=(Message("pirate", "a"),), completion="b"))
    assert caught.value.error.code is ItemErrorCode.INVALID_SAMPLE


def test_messages_where_there_is_no_template_or_no_wish_for_it_are_refused() -> None:
    sample = Sample(prompt=(Message("user", "a"),), completion="b")
    with pytest.raises(ItemFailure, match="has no chat template"):
        encoder(tokenizer=tiny_models.tiny_tokenizer(chat=False)).encode(sample)
    with pytest.raises(ItemFailure, match="input: text"):
        encoder(input="text").encode(sample)
    with pytest.raises(ItemFailure, match="send both as token ids"):
        encoder().encode(Sample(prompt=(Message("user", "a"),), completion=(3,)))


def test_configuration_that_the_tokenizer_cannot_follow_is_refused() -> None:
    bare = tiny_models.tiny_tokenizer(encoder=True)
    with pytest.raises(ConfigError, match="input: 'chat'"):
        encoder(tokenizer=bare, input="chat")
    with pytest.raises(ConfigError, match="bos: 'always'"):
        encoder(tokenizer=bare, bos="always")
    with pytest.raises(ConfigError, match="append_eos"):
        encoder(tokenizer=bare, append_eos=True)
