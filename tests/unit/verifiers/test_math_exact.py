"""What the mathematics verifier decides by itself, without a computer algebra system."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rewardsvc.verifiers.math.boxes import find_boxes
from rewardsvc.verifiers.math.extract import (
    Extracted,
    Missing,
    extract_math_answer,
    extract_reference,
)
from rewardsvc.verifiers.math.normalise import normalised
from rewardsvc.verifiers.math.rational import parse_rational
from rewardsvc.verifiers.math.stages import Question
from rewardsvc.verifiers.math.stages import decide as decide_question
from rewardsvc.verifiers.types import Status, Verdict


def decide(answer: str, reference: str) -> Verdict | None:
    question = Question(reference=normalised(reference), answer=normalised(answer))
    decided = decide_question(question)
    return decided if isinstance(decided, Verdict) else None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("-1,234.50", Fraction(-2469, 2)),
        ("1{,}000", Fraction(1000)),
        ("1e3", Fraction(1000)),
        ("1.5 \\times 10^{-3}", Fraction(3, 2000)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\frac12", Fraction(1, 2)),
        (r"-3\frac{1}{2}", Fraction(-7, 2)),
        (r"\frac{\frac{1}{2}}{-3}", Fraction(-1, 6)),
        (r"\frac{1}{2^{99}}", Fraction(1, 2**99)),
        ("2^3^2", Fraction(512)),
        ("-2^2", Fraction(-4)),
        ("2^{-1}*3", Fraction(3, 2)),
        ("(1+2)*3/4", Fraction(9, 4)),
        (r"\left(1 − 3\right)", Fraction(-2)),
        ("12.", Fraction(12)),
    ],
)
def test_rationals_are_read_exactly(text: str, value: Fraction) -> None:
    parsed = parse_rational(normalised(text))
    assert parsed is not None
    assert parsed.value == value


@pytest.mark.parametrize(
    "text",
    ["", "x", "1 2", "1,00", "1/0", "0^0", "2^{1/2}", r"\frac{1}", r"\frac{1}{", "(1", "1)", "٣",
     "9^{9^{9^9}}", "1e999999999", "(-1)^{10^{10^{10}}}", "1" * 5000, "3!", r"\sqrt{4}", "0x10",
     "1_000"],
)  # fmt: skip
def test_what_is_no_rational_is_not_read(text: str) -> None:
    assert parse_rational(normalised(text)) is None


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("0.5", r"\frac{1}{2}"),
        ("1e3", "1000"),
        ("50\\%", "0.5"),
        ("50", "50%"),
        ("0.333333", "1/3"),
        ("x = 5", "5"),
        ("5", "x=5"),
        ("5 h", "300 min"),
        (r"5\text{ hours}", "5"),
        (r"100\text{ cm}^2", r"0.01\text{ m}^2"),
        ("5 apples", "5"),
        (r"\text{(A)}", "A"),
        (r"\text{tuesday}", "Tuesday"),
        ("2 or 3", "2 or 3"),
        ("( 1,2 )", "(1, 2)"),
        (r"\dfrac{\pi}{2}", r"\frac{π}{2}"),
    ],
)
def test_equal_answers_are_accepted(answer: str, reference: str) -> None:
    verdict = decide(answer, reference)
    assert verdict is not None
    assert verdict.status is Status.ACCEPTED


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("1/2^{99}", "1/2^{98}"),
        ("10^{-20}", "10^{-21}"),
        ("1000000006", "1000000007"),
        ("0.3333", "1/3"),
        ("0.333334", "1/3"),
        ("3.141593", "3.141592"),
        ("10 cm", "10 m"),
        (r"10\text{ m}", r"10\text{ kg}"),
        ("300 h", "5 min"),
        ("5 hours", "300"),
        (r"10\text{ m}^2", r"10\text{ m}"),
        ("2 or 3", "2"),
        ("either 2", "2"),
        ("y = 5", "x = 5"),
        ("Monday", "Tuesday"),
        ("7", "Tuesday"),
        ("5\\%", "5.1\\%"),
    ],
)
def test_unequal_answers_are_not_accepted(answer: str, reference: str) -> None:
    verdict = decide(answer, reference)
    assert verdict is not None
    assert verdict.status is Status.WRONG_ANSWER


def test_what_needs_algebra_is_left_open() -> None:
    assert decide(r"\cos 2x", r"1 - 2\sin^2 x") is None
    assert decide(r"\arctan 1", "0.785398") is None
    assert decide(r"\sqrt{3 + 2\sqrt{2}}", r"1 + \sqrt{2}") is None


@pytest.mark.parametrize(
    ("answer", "reference", "why"),
    [
        ("1 + 2x", "2x + 1", "the same expression"),
        (r"x \ge 2", r"[2, \infty)", "the same set of real numbers"),
        ("4 = 3", "3", "it says that different numbers are equal"),
        ("2x > 4", "x > 2", "it is not solved for one variable"),
        ("0.333333", "1/3", "rounded or in percent"),
        ("10 m", "10 kg", "length where mass is asked for"),
        (r"\text{not } 3", "3", "says more than mathematics"),
    ],
)
def test_an_explanation_says_how_it_was_reached(answer: str, reference: str, why: str) -> None:
    verdict = decide(answer, reference)
    assert verdict is not None
    assert why in verdict.explanation


@pytest.mark.parametrize(
    ("completion", "answers"),
    [
        (r"so \boxed{3}.", ("3",)),
        (r"\boxed{3} so again \boxed{ 3 }", ("3",)),
        (r"\boxed{\boxed{3}}", ("3",)),
        (r"\boxed{x = 0.5} or \boxed{\frac{1}{2}}", (r"\frac{1}{2}",)),
        (r"\boxed{3} \boxed{4} \boxed{3}", ("4", "3")),
        (r"\boxed{3} \boxed{\text{unsolvable}}", ("3", r"\text{unsolvable}")),
        (r"\fbox{\frac{1}{2}}", (r"\frac{1}{2}",)),
        (r"$$\boxed{\left\{1, 2\right\}}$$", (r"\{1, 2 \}",)),
        ("The final answer is $\\frac{1}{2}$. I hope", (r"\frac{1}{2}",)),
        ("**Answer:** 42\n", ("42",)),
        ("Answer: 5\nno, the answer is 6.", ("6",)),
        ("#### 1,234", ("1,234",)),
        ("so we add\n= 3 + 4 = 7 apples", ("7",)),
        ("it is -3.5", ("-3.5",)),
        ("<think>\\boxed{1}</think>\\boxed{2}", ("2",)),
    ],
)
def test_the_answer_is_found(completion: str, answers: tuple[str, ...]) -> None:
    found = extract_math_answer(completion)
    assert isinstance(found, Extracted)
    assert found.answers == answers


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("", Missing.NONE),
        ("no idea", Missing.NONE),
        ("7\nno idea", Missing.NONE),
        (r"\boxed{3} then \boxed{4", Missing.UNTERMINATED),
        (r"\boxed{}", Missing.EMPTY_BOX),
        (r"<think>\boxed{3}", Missing.THINKING),
        (r"<think>\boxed{3}</think>", Missing.NONE),
    ],
)
def test_what_is_no_answer_says_why(completion: str, why: Missing) -> None:
    assert extract_math_answer(completion) is why


def test_only_a_box_counts_where_one_is_required() -> None:
    assert extract_math_answer("the answer is 3", require_box=True) is Missing.NO_BOX


def test_boxes_are_balanced_and_outermost() -> None:
    boxes = find_boxes(r"{ \boxed{a{b}\}} } \boxed{\boxed{c} d} } \boxed {e}")
    assert boxes.contents == (r"a{b}\}", r"\boxed{c} d", "e")
    assert not boxes.unterminated


@pytest.mark.parametrize(
    ("stored", "reference"),
    [
        ("42", "42"),
        ("Natalia sold 48/2 = 24.\n#### 72", "72"),
        (r"We get \boxed{\frac12}.", r"\frac12"),
        ("$x$", "x"),
    ],
)
def test_a_reference_may_be_a_worked_solution(stored: str, reference: str) -> None:
    assert extract_reference(stored) == reference
