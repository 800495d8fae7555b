"""`Countdown`: exact arithmetic, and every number used as the rules say."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from rewardsvc.verifiers import Countdown, ErrorKind, Status
from rewardsvc.verifiers.text import Extract


@pytest.mark.parametrize(
    "expression",
    ["(3 + 5) * 2", "2*(5+3)", "  ((2))*(3+5)  ", "(3+5)*2 = 16", "thinking aloud\n(3+5)*2\n\n"],
)
def test_right_expressions_are_accepted(expression: str) -> None:
    assert Countdown().verify(expression, [2, 3, 5], 16).status is Status.ACCEPTED


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("3 + 5 * 2", "is 13, not 16"),
        ("8 * 2", "8 is used more often"),
        ("5 + 3", "2 is not used"),
        ("(3+5)*2 + 2 - 2", "2 is used more often"),
        ("(3+5)*2 = 15", "claims"),
        ("(3+5)*2 = 16 = 16", "not allowed"),
        ("(3+5*2", "without"),
        ("3+5)*2", "without"),
        ("2 3 5", "without an operator"),
        ("2 / (5 - 5) + 3", "more often"),
        ("+", "sign"),
    ],
)
def test_wrong_expressions_say_what_is_wrong(expression: str, why: str) -> None:
    verdict = Countdown().verify(expression, [2, 3, 5], 16)
    assert verdict.status is Status.WRONG_ANSWER
    assert verdict.reward == 0.0
    assert why in verdict.explanation


def test_division_is_exact() -> None:
    # Floats make this 23.999999999999996.
    assert Countdown().verify("8 / (3 - 8 / 3)", [3, 3, 8, 8], 24).reward == 1.0
    assert Countdown().verify("1 / 3 * 3", [1, 3, 3], 1).reward == 1.0


def test_division_by_zero_is_wrong() -> None:
    verdict = Countdown().verify("1 / (2 - 2)", [1, 2, 2], 0)
    assert verdict.status is Status.WRONG_ANSWER
    assert "division by zero" in verdict.explanation


def test_at_most_once_allows_numbers_to_be_left_out() -> None:
    assert Countdown(use_all=False).verify("5 + 3", [2, 3, 5], 8).reward == 1.0
    assert Countdown(use_all=False).verify("5 + 5", [2, 3, 5], 10).reward == 0.0
    assert Countdown().verify("5 + 3", [2, 3, 5], 8).reward == 0.0


def test_signs_count_only_where_allowed() -> None:
    assert Countdown().verify("-2 + 5", [2, 5], 3).reward == 0.0
    assert Countdown(allow_sign=True).verify("-2 + 5", [2, 5], 3).reward == 1.0
    assert Countdown(allow_sign=True).verify("-(2 - 5)", [2, 5], 3).reward == 1.0


@pytest.mark.parametrize(
    ("extract", "completion", "reward"),
    [
        (Extract.ANSWER_TAG, "<think>1+1</think><answer> 2 + 3 </answer> done", 1.0),
        (Extract.ANSWER_TAG, "2 + 3", 0.0),
        (Extract.WHOLE, " 2 + 3 ", 1.0),
        (Extract.WHOLE, "so:\n2 + 3", 0.0),
        (Extract.LAST_LINE, "<think>\n2 + 3", 0.0),
        (Extract.LAST_LINE, "", 0.0),
    ],
)
def test_the_answer_is_looked_for_where_configured(
    extract: Extract, completion: str, reward: float
) -> None:
    assert Countdown(extract=extract).verify(completion, [2, 3], 5).reward == reward


@pytest.mark.parametrize("numbers", [[], [1, -2], [True, 2], [1.5], [10**40]])
def test_numbers_that_cannot_be_played_give_no_reward(numbers: list[int]) -> None:
    verdict = Countdown().verify("1", numbers, 1)
    assert verdict.error is ErrorKind.BAD_REFERENCE
    assert verdict.reward is None


@pytest.mark.parametrize("number", [-(10**5000), 10**5000], ids=["low", "high"])
def test_numbers_of_any_size_are_refused(number: int) -> None:
    assert Countdown().verify("1", [number], 1).error is ErrorKind.BAD_REFERENCE


@pytest.mark.parametrize(
    "target",
    ["24", None, True, math.nan, 0.5, 10**5000, -(10**5000)],
    ids=lambda target: type(target).__name__,
)
def test_a_target_that_nothing_equals_gives_no_reward(target: Any) -> None:
    verdict = Countdown().verify("4 * 6", [4, 6], target)
    assert verdict.error is ErrorKind.BAD_REFERENCE
    assert verdict.reward is None


@pytest.mark.parametrize("target", [24, 24.0, Fraction(24)])
def test_a_target_may_be_any_kind_of_number(target: Any) -> None:
    assert Countdown().verify("4 * 6", [4, 6], target).reward == 1.0
