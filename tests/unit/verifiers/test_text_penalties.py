"""Overlong, length and repetition penalties, and exact matching."""

from __future__ import annotations

import pytest

from rewardsvc.verifiers import (
    CosineCurve,
    ErrorKind,
    ExactMatch,
    Status,
    cosine_length_reward,
    length_penalty,
    overlong_penalty,
    repetition_penalty,
)
from rewardsvc.verifiers.text import Extract


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (10**9, -1.0)],
)
def test_overlong_is_daposs_soft_form(length: int, penalty: float) -> None:
    assert overlong_penalty(length, max_length=100, cache_length=20) == pytest.approx(penalty)


def test_overlong_without_a_cache_is_a_step() -> None:
    assert overlong_penalty(100, max_length=100, cache_length=0) == 0.0
    assert overlong_penalty(101, max_length=100, cache_length=0) == -1.0


@pytest.mark.parametrize(("max_length", "cache_length"), [(0, 0), (10, 11), (10, -1)])
def test_overlong_names_the_bad_bound(max_length: int, cache_length: int) -> None:
    with pytest.raises(ValueError, match="length is"):
        overlong_penalty(5, max_length=max_length, cache_length=cache_length)


def test_length_penalty_grows_beyond_the_target_only() -> None:
    assert length_penalty(10, target=10) == 0.0
    assert length_penalty(15, target=10, weight=0.2) == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="target is 0"):
        length_penalty(1, target=0)


def test_repetition_is_the_share_of_repeated_ngrams() -> None:
    # 2-grams: ab bc ca ab bc: 5, of which 3 are distinct.
    assert repetition_penalty(list("abcabc"), ngram_size=2) == pytest.approx(-2 / 5)
    assert repetition_penalty(list("abcd"), ngram_size=2) == 0.0
    assert repetition_penalty(["a"], ngram_size=2) == 0.0
    assert repetition_penalty([7] * 101, ngram_size=1, max_penalty=0.5) == pytest.approx(-50 / 101)


def test_exact_match_ignores_white_space_and_composition() -> None:
    assert ExactMatch().verify(" cafe\u0301  au\nlait ", "café au lait").reward == 1.0
    assert ExactMatch().verify("Paris", "paris").status is Status.WRONG_ANSWER
    assert ExactMatch(ignore_case=True).verify("Paris", "paris").reward == 1.0


def test_exact_match_reads_the_answer_where_configured() -> None:
    verifier = ExactMatch(extract=Extract.ANSWER_TAG)
    assert verifier.verify("it is <answer>Paris</answer>.", "Paris").reward == 1.0
    assert verifier.verify("Paris", "Paris").status is Status.NO_ANSWER


def test_exact_match_with_a_blank_reference_gives_no_reward() -> None:
    assert ExactMatch().verify("", " ").error is ErrorKind.BAD_REFERENCE


@pytest.mark.timeout(20)
def test_marks_piled_on_a_character_are_not_sorted() -> None:
    """Normalising would take the square of their number: minutes."""
    piled = "a" + "\u0301" * 200_000 + "\u0327" * 200_000
    assert ExactMatch().verify(piled, "a").reward == 0.0
    assert ExactMatch().verify("a", piled).reward == 0.0
    assert ExactMatch().verify(f" {piled}\n", piled).reward == 1.0
    assert ExactMatch().verify("a\u0327\u0301", "a\u0301\u0327").reward == 1.0


def test_no_length_is_too_large_for_a_cosine() -> None:
    curve = CosineCurve(max_length=10, at_limit=None)
    assert cosine_length_reward(10**400, correct=True, curve=curve) == curve.correct_at_max
