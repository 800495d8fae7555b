"""Texts that once raised, took for ever or filled the memory: none of them does.

Those that took quadratic or exponential time are long enough here to take minutes if they did
again; nothing is timed.
"""

from __future__ import annotations

import math
from decimal import Inexact, localcontext
from fractions import Fraction

import pytest

from rewardsvc.verifiers.math.algebra import Algebra, of_terms, one_budget, rational, symbol
from rewardsvc.verifiers.math.extract import Extracted, extract_math_answer
from rewardsvc.verifiers.math.form_reader import count_items, read_forms
from rewardsvc.verifiers.math.normalise import normalised
from rewardsvc.verifiers.math.radicals import rational_power
from rewardsvc.verifiers.math.rational import parse_rational
from rewardsvc.verifiers.math.reader import read_expression
from rewardsvc.verifiers.math.relations import _DECIMAL
from rewardsvc.verifiers.math.stages import Question, decide
from rewardsvc.verifiers.types import Status, Verdict

PRIMES = [n for n in range(2, 400) if all(n % d for d in range(2, math.isqrt(n) + 1))]
HUNDRED = ", ".join(map(str, range(100)))
A_SET_OF_SETS = r"\{" + ",".join([r"\{" + ",".join("a" * 50) + r"\}"] * 50) + r"\}"


def nested(pattern: str, depth: int, core: str = "x") -> str:
    for _ in range(depth):
        core = pattern.replace("?", core)
    return core


def decided(reference: str, answer: str) -> Verdict | Question:
    return decide(Question(reference=normalised(reference), answer=normalised(answer)))


@pytest.mark.parametrize("sign", ["-", ".", "-.", "+", "1-", "1.2.3", "--1", ""])
def test_a_sign_or_a_point_is_no_decimal(sign: str) -> None:
    assert not _DECIMAL.fullmatch(sign)
    assert isinstance(decided("1", rf"1\approx {sign}"), Verdict | Question)
    assert isinstance(decided(rf"x = 1\approx {sign}", "1"), Verdict | Question)


@pytest.mark.parametrize("number", ["1", "-1", "1.", ".5", "-.5", "0.25", "-12.50"])
def test_a_number_is_a_decimal(number: str) -> None:
    match = _DECIMAL.fullmatch(number)
    assert match is not None
    assert len(match["places"] or "") == len(number.partition(".")[2])


def test_rounding_does_not_depend_on_the_callers_decimal_context() -> None:
    with localcontext() as context:
        context.prec = 3
        context.traps[Inexact] = True
        verdict = decided(r"\frac{1}{3}", r"x = \frac{1}{3} \approx 0.3333")
    assert isinstance(verdict, Verdict)
    assert verdict.status is Status.ACCEPTED


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("x", r"\sin(x*9^{2500}*9^{2500})"),  # a coefficient of more digits than Python writes
        ("x", r"|x*9^{2500}*9^{2500}|"),
        ("2", r"\sqrt" * 190 + "2"),  # as deep as Python's stack, and no bracket in sight
        (r"\sqrt" * 390 + "2", "2"),
        (r"\frac" * 390 + "2", "2"),
        (r"\sqrt\sin" * 200 + "x", "2"),
        ("x" + "^x" * 900, "2"),
        ("2", nested(r"\sin((1+?)^{20})", 15)),  # names of names of names
        ("2", nested(r"|(1+?)^{20}|", 15)),
        ("2", nested(r"(1+?)^{x}", 40)),
        ("no solution", ",".join(["(a+b+c+d+e+f+g+h)^9"] * 50)),  # each with a budget of its own
        (A_SET_OF_SETS, A_SET_OF_SETS.replace("a", "b")),
        (A_SET_OF_SETS, A_SET_OF_SETS[:-2] + r" \}"),
        ("x=" + "{" * 4900 + "2" + "}" * 4900, "3"),
        ("=".join(["1"] * 4000), "=".join(["1"] * 4000) + "=2"),
        ("[0,1]", r"\cup ".join(["[0,1]"] * 150)),
        ("3", rf"({math.prod(PRIMES[:37])}/{math.prod(PRIMES[37:70])})^{{1801/2}}"),
        ("3", "+".join(f"1/{p}^{{{2600 // p.bit_length()}}}" for p in PRIMES)),
        ("3", "+".join(rf"x^{{2}}/{p}^{{900}}" for p in PRIMES)),
        ("3", "|-" + nested("(?)^{9999}", 3, r"\pi^{-9999}") + "|"),  # too small for a decimal
        (":".join(["1"] * 3000), ":".join(["2"] * 3000)),
        ("9" * 5000, "9" * 4999 + "8"),
        ("1" * 4301 + "/3", "2"),
        ("1.5e999999999", "2"),
        (r"10^{10^{10}}", "2"),
        ("٣", "3"),
        ("\ud800", "\udfff"),
        ("1\x00", "1"),
    ],
)
@pytest.mark.timeout(20)
def test_a_text_out_of_hand_is_decided_or_left_open(reference: str, answer: str) -> None:
    for one, other in ((reference, answer), (answer, reference), (reference, reference)):
        assert isinstance(decided(one, other), Verdict | Question)


@pytest.mark.parametrize(
    "piece", ["000,", "1,000,", "000 ", "1.", "1/", "-", ".", ",", "%", "\\frac{1}{", "$1", "1 or "]
)
@pytest.mark.timeout(20)
def test_numbers_are_looked_for_in_linear_time(piece: str) -> None:
    for text in (piece * 100_000, piece * 100_000 + "1", f"the answer is {piece * 100_000}"):
        assert extract_math_answer(text) is not None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 1,000,000", "1,000,000"),
        ("it is 12,345.5", "12,345.5"),
        ("either 1,2,3", "2,3"),
        ("they are 5, 1,000,000", "1,000,000"),
    ],
)
def test_the_last_number_keeps_its_thousands(text: str, number: str) -> None:
    found = extract_math_answer(text)
    assert isinstance(found, Extracted)
    assert found.answers == (number,)


def test_a_long_sum_of_fractions_is_no_rational_number() -> None:
    assert parse_rational("9^2400/7^2400+" * 700 + "1") is None
    assert parse_rational("1+" * 700 + "1") is not None


@pytest.mark.parametrize(
    "brackets", ["(" * 60 + "x" + ")" * 60, "{" * 60 + "x_1" + "}" * 60 + "+1"]
)
def test_what_equals_the_reference_may_be_as_deep_as_it(brackets: str) -> None:
    verdict = decided(brackets, f" {brackets} ")
    assert isinstance(verdict, Verdict)
    assert verdict.status is Status.ACCEPTED


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\log_2^{-1}(8)", r"\log_3^{-1}(8)"),
        (r"(1, \infty)", r"17 \in (1, \infty)"),
        (r"|-\pi|", r"-\pi"),
    ],
)
def test_different_things_are_not_accepted(reference: str, answer: str) -> None:
    verdict = decided(reference, answer)
    assert not isinstance(verdict, Verdict) or verdict.reward == 0.0


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\sin^{-1}(x)", r"\arcsin(x)"),
        (r"\log_2^{-1}(x)", r"\log_{2}^{-1}(x)"),
        (r"(1, \infty)", r"x \in (1, \infty)"),
        (r"\{" + HUNDRED + r"\}", r"\{" + ", ".join(HUNDRED.split(", ")[::-1]) + r"\}"),
        (nested(r"\sin(1+?)", 12), nested(r"\sin(?+1)", 12)),
        (nested(r"\sin((1+?)^2)", 4), nested(r"\sin((?)^2+2*(?)+1)", 4)),
    ],
)
def test_the_same_things_are_still_found_the_same(reference: str, answer: str) -> None:
    verdict = decided(reference, answer)
    assert isinstance(verdict, Verdict)
    assert verdict.status is Status.ACCEPTED


def test_budgets_do_not_add_up_within_one() -> None:
    heavy = "(a+b+c+d+e+f+g+h)^5"
    [alone] = read_forms(heavy)
    assert alone.expression is not None  # type: ignore[union-attr]
    with one_budget():
        read = [form.expression for _ in range(50) for form in read_forms(heavy)]  # type: ignore[union-attr]
    assert read[0] is not None
    assert read[-1] is None
    assert count_items(",".join([heavy] * 50)) == 50


def test_whole_exponents_hash_as_integers_and_equal_fractions() -> None:
    root = of_terms(rational_power(Fraction(8), Fraction(1, 2)))
    assert Algebra().multiply(root, root) == rational(Fraction(8))
    [(monomial, _)] = read_expression("x^{3/2}*x^{1/2}").top.items()
    assert monomial == (("x", 2),)
    assert type(monomial[0][1]) is int
    assert read_expression("x^{1/2}*x^{1/2}") == symbol("x")
