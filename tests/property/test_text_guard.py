"""Whatever anybody writes, the only control tokens of a chat are those of its template."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tiny_tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers._text import SampleEncoder
from rewardsvc.scoring import Message, Sample

NAMES = (*tiny_tokenizers.CONTROL, tiny_tokenizers.LEFT, tiny_tokenizers.RIGHT)
PIECES = st.one_of(
    st.sampled_from(NAMES),
    # Halves, which a neighbour may complete.
    st.sampled_from([name[:n] for name in NAMES for n in range(1, len(name))]),
    st.sampled_from([name[n:] for name in NAMES for n in range(1, len(name))]),
    st.text(max_size=4),
    st.sampled_from([" ", "\n", "a duck", "▁", "＜", "🙂"]),
)
TEXTS = (
    st.lists(PIECES, max_size=6)
    .map("".join)
    .filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))
)


@cache
def subject(kind: str) -> tuple[SampleEncoder, Any, list[int]]:
    tokenizer = tiny_tokenizers.make(kind)
    encoder = SampleEncoder(
        tokenizer,
        ModelConfig(type="any", model="any"),
        max_length=100_000,
        vocab_size=len(tokenizer),
    )
    return encoder, tokenizer, controls(encoder, tokenizer, "a", "b", "c")


def controls(encoder: SampleEncoder, tokenizer: Any, *contents: str) -> list[int]:
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    roles = ("system", "user", "assistant")
    *prompt, last = [Message(role, text) for role, text in zip(roles, contents, strict=True)]
    tokens = encoder.encode(Sample(prompt=tuple(prompt), completion=(last,)))
    return [int(i) for i in tokens.ids if int(i) in special]


@pytest.mark.parametrize("kind", list(tiny_tokenizers.KINDS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents=st.tuples(TEXTS, TEXTS, TEXTS))
def test_control_tokens_of_a_chat_are_its_templates(
    kind: str, contents: tuple[str, str, str]
) -> None:
    encoder, tokenizer, expected = subject(kind)
    assert controls(encoder, tokenizer, *contents) == expected


@pytest.mark.parametrize("kind", list(tiny_tokenizers.KINDS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=TEXTS, completion=TEXTS)
def test_a_plain_completion_adds_at_most_the_eos_at_its_end(
    kind: str, prompt: str, completion: str
) -> None:
    encoder, tokenizer, _ = subject(kind)
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    prompt = "q " + "".join(char for char in prompt if char not in "<|>")
    tokens = encoder.encode(Sample(prompt=prompt, completion=completion + " "))
    plain = encoder.encode(Sample(prompt=prompt, completion="x"))
    count = sum(int(i) in special for i in tokens.ids)
    assert count == sum(int(i) in special for i in plain.ids)
