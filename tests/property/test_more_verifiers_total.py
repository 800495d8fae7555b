"""The further verifiers answer any text whatever, and big hostile texts without quadratic time."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.verifiers import (
    InstructionFollowing,
    JsonSchema,
    LanguageConsistency,
    MultipleChoice,
    RegexMatch,
    Verdict,
)
from rewardsvc.verifiers.instructions import Credit, Reading
from rewardsvc.verifiers.instructions.counting import count_keyword
from rewardsvc.verifiers.instructions.kinds import KINDS
from rewardsvc.verifiers.json_document import DocumentError, read_document, unfenced
from rewardsvc.verifiers.language import language_share

FRAGMENTS = [
    "\\boxed{", "}", "{", "[", "]", "<think>", "</think>", "<answer>", "</answer>", "answer is ",
    "####", "A", "B", " or ", "*", "**", "***", "******", "<<", ">>", "P.S.", "Section 1", "- ",
    "\n", "\n\n", "```", "```json\n", '"', ":", ",", "1e999", "NaN", "9" * 4500, "。", "...", "Dr.",
    "事", "\x00", "\ud800", "\u202e", "\u2028", "ß", "İ",
]  # fmt: skip
any_text = st.one_of(
    st.text(st.characters(codec=None), max_size=200),
    st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join),
)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)
PARAMS = {
    "keywords": ["cat", "a.b"], "keyword": "cat", "frequency": 2, "relation": "at least",
    "forbidden_words": ["dog"], "letter": "e", "let_frequency": 3, "let_relation": "less than",
    "language": "en", "num_words": 5, "num_sentences": 2, "num_paragraphs": 2, "nth_paragraph": 1,
    "first_word": "the", "num_placeholders": 1, "postscript_marker": "P.S.", "num_bullets": 2,
    "num_highlights": 1, "section_spliter": "Section", "num_sections": 2, "start_phrase": "I",
    "options": ["yes", "no"], "prompt_to_repeat": "Say", "end_phrase": "end",
    "capital_frequency": 1, "capital_relation": "less than",
}  # fmt: skip
EVERY_KIND = [
    {"kind": name, "params": {param: PARAMS[param] for param in kind.params}}
    for name, kind in KINDS.items()
]
SCHEMA = JsonSchema(schema={"type": "array", "items": {"$ref": "#"}, "uniqueItems": True})


def assert_sound(verdict: Verdict) -> None:
    assert (verdict.reward is None) == (verdict.error is not None)
    assert verdict.reward is None or math.isfinite(verdict.reward)


@given(any_text, any_text, st.integers(2, 26))
def test_multiple_choice_is_total(completion: str, answer: str, num_choices: int) -> None:
    assert_sound(MultipleChoice(num_choices=num_choices).verify(completion, answer))


@given(any_text, st.sampled_from(["ja", "en", "xx", ""]))
def test_language_is_total(completion: str, language: str) -> None:
    assert_sound(LanguageConsistency().verify(completion, language))


@given(any_text)
def test_a_pattern_is_total(completion: str) -> None:
    assert_sound(RegexMatch(pattern=r"(\w+\s?)*:$").verify(completion))


@given(any_text, st.sampled_from(Reading), st.sampled_from(Credit))
def test_every_kind_of_instruction_is_total(text: str, reading: Reading, credit: Credit) -> None:
    verdict = InstructionFollowing(reading=reading, credit=credit).verify(text, EVERY_KIND)
    assert verdict.error is None
    assert_sound(verdict)


@given(any_text, st.lists(st.dictionaries(st.sampled_from(["kind", "params", "x"]), json_values)))
def test_any_instructions_have_a_verdict(completion: str, instructions: list[dict]) -> None:
    assert_sound(InstructionFollowing().verify(completion, instructions))


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(list(PARAMS)), json_values))
def test_any_parameters_have_a_verdict(kind: str, params: dict) -> None:
    assert_sound(InstructionFollowing().verify("text", [{"kind": kind, "params": params}]))


@given(any_text)
def test_a_schema_is_total(completion: str) -> None:
    assert_sound(SCHEMA.verify(completion))


@given(any_text, json_values)
@settings(max_examples=50)
def test_any_schema_has_a_verdict(completion: str, schema: object) -> None:
    assert_sound(JsonSchema().verify(completion, json.dumps(schema)))


@given(json_values)
def test_what_python_writes_is_read_back(value: object) -> None:
    text = json.dumps(value)
    assert read_document(unfenced(f"```json\n{text}\n```")) == value


@given(st.text("ab_ .", max_size=30), st.text("ab_.", min_size=1, max_size=3))
def test_keywords_agree_with_a_plain_pattern(text: str, keyword: str) -> None:
    before = r"(?<!\w)" if re.match(r"\w", keyword) else ""
    after = r"(?!\w)" if re.search(r"\w$", keyword) else ""
    expected = len(re.findall(before + re.escape(keyword) + after, text))
    assert count_keyword(text, keyword) == expected


@given(any_text)
def test_shares_of_disjoint_scripts_do_not_exceed_the_whole(text: str) -> None:
    shares = [language_share(text, language) for language in ("en", "ru", "zh", "ko", "ar")]
    if shares[0] is None:
        assert set(shares) == {None}
    else:
        assert sum(share or 0.0 for share in shares) <= 1.0 + 1e-9


@pytest.mark.parametrize(
    "piece",
    ["[", "*", "<<", ".", "\n", "\n ", "```", "a", "A ", "\\boxed{", "answer is ", "<think>", "}",
     "P.S.", "Section 1", ". ", '"', "{[", "\ud800", "aaaa.", "!", "** *"],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_long_monotonous_texts_are_judged(piece: str) -> None:
    """Quadratic time on a hundred thousand pieces would take minutes."""
    for text in (piece * (100_000 // len(piece)), piece * (100_000 // len(piece)) + "x"):
        assert_sound(InstructionFollowing(reading=Reading.LOOSE).verify(text, EVERY_KIND))
        assert_sound(MultipleChoice().verify(text, "A"))
        assert_sound(LanguageConsistency(language="en").verify(text))
        assert_sound(SCHEMA.verify(text))
        with pytest.raises(DocumentError):
            read_document(text)
