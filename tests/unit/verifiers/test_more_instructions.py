"""Every kind of instruction: followed, not followed, and what cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from rewardsvc.verifiers import ErrorKind, InstructionFollowing, Status
from rewardsvc.verifiers.instructions import Credit, Reading
from rewardsvc.verifiers.instructions.counting import count_keyword, count_sentences, paragraphs
from rewardsvc.verifiers.instructions.kinds import KINDS
from rewardsvc.verifiers.instructions.parameters import Relation

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A Cat; a dog.", "A category; a dog."),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"},
     "cat, Cat", "cat concatenated"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "no cat"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "less than"},
     "Q", "qQ"),
    ("language:response_language", {"language": "ru"}, "Привет, мир", "Hello"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"},
     "one two three", "one two"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "exactly"},
     "I met Dr. Who. He left!", "I met Dr. Who"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
     "First.\n\nThen it ends.", "Then.\n\nFirst."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a] []"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi\nP. S. more", "Hi P.S."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S. more", "P.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b", "* a\n---\n**b**"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     "*a b* and **c**", "*a* and *a* and * b *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1\nx\n## SECTION 2\ny", "Section 1\nSection 1\nin Section 2"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', 'So: {"a": 1}'),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >> <title>"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "Yes."),
    ("detectable_format:constrained_response", {"options": ["Aye", "Nay"]}, "Aye", "Aye Nay"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. Then.", "Then."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It.", "Say it."),
    ("startend:start_checker", {"start_phrase": "I think"}, "i think so", "So I think"),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'So. That is all."', "That is all"),
    ("startend:quotation", {}, '"quoted"', '"quoted" not'),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 1, "capital_relation": "at most"}, "BIG day", "BIG DAY"),
    ("change_case:english_capital", {}, "ALL 3 OF US", "All"),
    ("change_case:english_lowercase", {}, "all 3 of us", "All"),
    ("punctuation:no_comma", {}, "none. here", "one，two"),
]  # fmt: skip


def verify(kind: str, params: dict[str, Any], text: str, **options: Any) -> Any:
    asked = [{"kind": kind, "params": params}]
    return InstructionFollowing(**options).verify(text, asked)


@pytest.mark.parametrize(("kind", "params", "good", "bad"), CASES)
def test_each_kind_tells_followed_from_not(
    kind: str, params: dict[str, Any], good: str, bad: str
) -> None:
    followed, missed = verify(kind, params, good), verify(kind, params, bad)
    assert followed.status is Status.ACCEPTED, followed.explanation
    assert missed.status is Status.WRONG_ANSWER
    assert kind in missed.explanation


def test_every_kind_of_the_table_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("response", ["", " \n", "<think>thoughts", "<think>all</think> "])
def test_saying_nothing_follows_nothing(kind: str, response: str) -> None:
    params = next(case[1] for case in CASES if case[0] == kind)
    assert verify(kind, params, response).status is Status.NO_ANSWER


def test_thoughts_are_no_response() -> None:
    assert verify("punctuation:no_comma", {}, "<think>a, b</think>c").reward == 1.0
    assert verify("keywords:existence", {"keywords": ["a"]}, "<think>a</think>c").reward == 0.0


def test_ifevals_own_columns_are_read() -> None:
    kinds = ["punctuation:no_comma", "length_constraints:number_words"]
    columns = [{"num_words": None}, {"num_words": 2.0, "relation": "less than", "keyword": None}]
    verifier = InstructionFollowing(credit=Credit.FRACTION)
    assert verifier.verify("one", instruction_id_list=kinds, kwargs=columns).reward == 1.0
    half = verifier.verify("one two", instruction_id_list=kinds, kwargs=columns)
    assert (half.reward, half.status) == (0.5, Status.PARTIAL)
    assert verifier.verify("a, b", instruction_id_list=kinds, kwargs=columns).reward == 0.0


def test_all_or_nothing_gives_nothing_for_some() -> None:
    asked = [{"kind": "punctuation:no_comma"}, {"kind": "detectable_format:title"}]
    verdict = InstructionFollowing().verify("no title", asked)
    assert (verdict.reward, verdict.status) == (0.0, Status.WRONG_ANSWER)
    assert verdict.explanation.startswith("1 of 2 instructions")


@pytest.mark.parametrize(
    ("kind", "params", "text"),
    [
        ("change_case:english_lowercase", {}, "Sure! Here it is:\nall lower"),
        ("startend:end_checker", {"end_phrase": "Bye."}, "So. Bye.\n(end of answer)"),
        ("startend:start_checker", {"start_phrase": "I think"}, "**I think** so"),
    ],
)
def test_a_loose_reading_forgives_what_a_strict_one_does_not(
    kind: str, params: dict[str, Any], text: str
) -> None:
    assert verify(kind, params, text).reward == 0.0
    assert verify(kind, params, text, reading=Reading.LOOSE).reward == 1.0


@pytest.mark.parametrize(
    ("instructions", "named"),
    [
        (None, "instructions is missing"),
        ([], "0 entries"),
        ("no_comma", "is a str"),
        ([{"params": {}}], "give {kind, params}"),
        ([{"kind": "no_comma"}], "did you mean 'punctuation:no_comma'"),
        ([{"kind": "punctuation:no_comma", "params": {"x": 1}}], "unknown parameter 'x'"),
        ([{"kind": "punctuation:no_comma", "params": [1]}], "give a mapping"),
        ([{"kind": "keywords:existence", "params": {}}], "keywords is missing"),
        ([{"kind": "keywords:existence", "params": {"keywords": "cat"}}], "give a list of words"),
        ([{"kind": "keywords:existence", "params": {"keywords": [" "]}}], "give text"),
        ([{"kind": "language:response_language", "params": {"language": "xx"}}], "'xx'"),
        (
            [{"kind": "detectable_format:number_bullet_lists", "params": {"num_bullets": True}}],
            "num_bullets is True; give an integer",
        ),
        (
            [{"kind": "length_constraints:number_words",
              "params": {"num_words": 3, "relation": "about"}}],
            "'less than'",
        ),
    ],
)  # fmt: skip
def test_instructions_that_cannot_be_read_are_no_reward(instructions: Any, named: str) -> None:
    verdict = InstructionFollowing().verify("text", instructions)
    assert verdict.error is ErrorKind.BAD_REFERENCE
    assert named in verdict.explanation


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0), ("one", 1), ("One. Two? Three!", 3), ("It costs 3.50 now.", 1),
        ("Dr. Smith met Mr. Jones, e.g. today.", 1), ("Wait... what?", 2), ("J. R. Smith left.", 1),
        ("1. First\n2. Second", 1), ("A heading\n\nA sentence.", 2), ('Say "no." Then go.', 2),
        ("你好。再见！", 2), ("?!", 0),
    ],
)  # fmt: skip
def test_sentences_are_counted_as_people_do(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_paragraphs_stand_between_blank_lines() -> None:
    assert paragraphs("a\nb\n \n\t\n\nc\n\n") == ["a\nb", "c"]


def test_a_keyword_is_literal_text_and_a_whole_word() -> None:
    assert count_keyword("a.b axb a.b", "a.b") == 2
    assert count_keyword("C++ and c++;", "C++") == 2
    assert count_keyword("aaaa", "aa") == 0
    assert count_keyword("ice cream, Ice Cream", "ice cream") == 2


def test_relations_compare() -> None:
    holds = {r: [r.holds(n, 2) for n in (1, 2, 3)] for r in Relation}
    assert holds == {
        Relation.LESS_THAN: [True, False, False],
        Relation.AT_LEAST: [False, True, True],
        Relation.AT_MOST: [True, True, False],
        Relation.MORE_THAN: [False, False, True],
        Relation.EXACTLY: [False, True, False],
    }
