"""Every verifier answers any text whatever: no exception, no hang, no NaN."""

from __future__ import annotations

import ast
import math
from contextlib import suppress
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.verifiers import Countdown, ExactMatch, Format, Verdict, repetition_penalty
from rewardsvc.verifiers.arithmetic import RefusedError, evaluate
from rewardsvc.verifiers.format import Preset
from rewardsvc.verifiers.math.boxes import find_boxes
from rewardsvc.verifiers.math.extract import Extracted, extract_math_answer, extract_reference
from rewardsvc.verifiers.math.normalise import normalised
from rewardsvc.verifiers.math.rational import parse_rational
from rewardsvc.verifiers.math.stages import Question, decide, reference_problem
from rewardsvc.verifiers.text import Extract

FRAGMENTS = [
    "\\boxed{", "}", "{", "\\{", "\\", "\\frac", "\\frac{1}{2}", "$", "<think>", "</think>",
    "<answer>", "</answer>", "answer is", "####", "(", ")", "[", "]", "^", "+", "-", "*", "/", "=",
    ",", ".", "%", " or ", "1", "23", "9" * 5000, "1e3", "x", " cm", "\\text{", "\n", "\x00",
    "\ud800", "\u202e", "٣", '"', "null", "\u2028",
]  # fmt: skip
any_text = st.one_of(
    st.text(st.characters(codec=None), max_size=200),
    st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join),
)
FORMATS = [*(Format(preset=preset) for preset in Preset), Format(pattern=".*x")]


def assert_sound(verdict: Verdict) -> None:
    assert (verdict.reward is None) == (verdict.error is not None)
    assert verdict.reward is None or math.isfinite(verdict.reward)


@given(any_text)
def test_format_is_total(completion: str) -> None:
    for verifier in FORMATS:
        assert_sound(verifier.verify(completion))


@given(any_text, any_text, st.sampled_from(Extract))
def test_exact_match_is_total(completion: str, answer: str, extract: Extract) -> None:
    assert_sound(ExactMatch(extract=extract).verify(completion, answer))


@given(any_text, st.lists(st.integers(), max_size=5), st.integers(), st.sampled_from(Extract))
def test_countdown_is_total(
    completion: str, numbers: list[int], target: int, extract: Extract
) -> None:
    assert_sound(Countdown(extract=extract).verify(completion, numbers, target))


@given(any_text, any_text)
def test_what_the_mathematics_verifier_decides_itself_is_total(completion: str, gold: str) -> None:
    reference = extract_reference(gold)
    found = extract_math_answer(completion)
    if reference_problem(reference) or not isinstance(found, Extracted):
        return
    for answer in found.answers:
        decided = decide(Question(reference=reference, answer=answer))
        if isinstance(decided, Verdict):
            assert_sound(decided)


@given(any_text)
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalised(text)
    parsed = parse_rational(once)
    if parsed is not None:
        assert parse_rational(normalised(once)) == parsed


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "a", "\\{", "\\}"]), max_size=40))
def test_boxes_agree_with_a_plain_search(parts: list[str]) -> None:
    assert find_boxes("".join(parts)).contents == tuple(boxes_by_plain_search(parts))


def boxes_by_plain_search(parts: list[str]) -> list[str]:
    """For each opening, counts braces up to its partner; keeps what no other box contains."""
    spans = []
    for start, part in enumerate(parts):
        depth = 0
        if part != "\\boxed{":
            continue
        for end in range(start, len(parts)):
            depth += {"\\boxed{": 1, "{": 1, "}": -1}.get(parts[end], 0)
            if depth == 0:
                spans.append((start, end))
                break
    outermost = [(a, b) for a, b in spans if not any(c < a and b < d for c, d in spans)]
    return ["".join(parts[a + 1 : b]) for a, b in outermost]


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=12,
)


@given(expressions)
@settings(max_examples=200)
def test_arithmetic_agrees_with_pythons_grammar(text: str) -> None:
    expected = by_syntax_tree(ast.parse(text, mode="eval").body)
    parsed = parse_rational(text)
    assert (parsed.value if parsed else None) == expected


def by_syntax_tree(node: ast.expr) -> Fraction | None:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    left, right = by_syntax_tree(node.left), by_syntax_tree(node.right)
    if left is None or right is None:
        return None
    match node.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case _:
            return left / right if right else None


@given(st.lists(st.sampled_from(["(", ")", "+", "-", "*", "/", "^", Fraction(2), Fraction(-1, 3)])))
def test_any_list_of_symbols_has_a_value_or_is_refused(symbols: list[object]) -> None:
    with suppress(RefusedError):
        assert isinstance(evaluate(symbols), Fraction)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 3), max_size=50), st.integers(1, 5))
def test_repetition_penalty_agrees_with_a_plain_count(words: list[int], ngram_size: int) -> None:
    seen: list[list[int]] = []
    num_repeated = 0
    for start in range(len(words) - ngram_size + 1):
        ngram = words[start : start + ngram_size]
        num_repeated += ngram in seen
        seen.append(ngram)
    expected = -num_repeated / len(seen) if seen else 0.0
    assert math.isclose(repetition_penalty(words, ngram_size=ngram_size), expected, abs_tol=1e-12)
