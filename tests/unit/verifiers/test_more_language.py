"""Shares of letters by script, and rewards that a length bends."""

from __future__ import annotations

import math

import pytest

from rewardsvc.verifiers import (
    CosineCurve,
    ErrorKind,
    LanguageConsistency,
    Status,
    cosine_length_reward,
)
from rewardsvc.verifiers.language import language_share, script_of


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("hello", "en", 1.0),
        ("Привет", "ru", 1.0),
        ("Привет", "en", 0.0),
        ("ab事情", "en", 0.5),
        ("ab事情", "zh", 0.5),
        ("これは漢字カナー", "ja", 1.0),
        ("안녕 hello", "ko", 2 / 7),
        ("１２ ＡＢ", "en", 1.0),
        ("naïve façade", "fr", 1.0),
        ("नमस्ते 123!", "hi", 1.0),
        ("12 + 3 = 15", "en", None),
        ("", "en", None),
    ],
)
def test_the_share_counts_letters_alone(text: str, language: str, share: float | None) -> None:
    assert language_share(text, language) == pytest.approx(share)


def test_a_letter_without_a_name_has_no_script() -> None:
    assert script_of("\ud800") == ""
    assert script_of("Ａ") == "LATIN"


def test_the_share_is_the_reward_unless_there_is_a_threshold() -> None:
    plain, strict = LanguageConsistency(language="en"), LanguageConsistency(min_share=0.8)
    assert plain.verify("abc事").reward == 0.75
    assert plain.verify("abc事").status is Status.PARTIAL
    assert strict.verify("abc事", "en").reward == 0.0
    assert strict.verify("abcd事", "en").reward == 1.0


def test_thoughts_count_unless_only_the_answer_does() -> None:
    completion = "<think>事情</think>good"
    assert LanguageConsistency(language="zh").verify(completion).reward == pytest.approx(2 / 16)
    answer_only = LanguageConsistency(language="en", answer_only=True)
    assert answer_only.verify(completion).reward == 1.0
    assert answer_only.verify("<think>good").status is Status.NO_ANSWER


def test_a_text_without_letters_proves_nothing() -> None:
    assert LanguageConsistency(language="en").verify("42").status is Status.NO_ANSWER


def test_an_unknown_language_is_no_reward() -> None:
    assert LanguageConsistency().verify("a", "xx").error is ErrorKind.BAD_REFERENCE
    assert LanguageConsistency().verify("a").error is ErrorKind.BAD_REFERENCE
    with pytest.raises(ValueError, match="'xx'"):
        LanguageConsistency(language="xx")
    with pytest.raises(ValueError, match="min_share"):
        LanguageConsistency(min_share=0.0)


CURVE = CosineCurve(max_length=100)


@pytest.mark.parametrize(
    ("length", "correct", "reward"),
    [
        (0, True, 2.0),
        (50, True, 1.5),
        (0, False, -10.0),
        (50, False, -5.0),
        (25, True, 1.0 + 0.5 * (1 + math.cos(math.pi / 4))),
        (100, True, -10.0),
        (100, False, -10.0),
        (1000, True, -10.0),
    ],
)
def test_the_cosine_meets_the_papers_values(length: int, correct: bool, reward: float) -> None:
    assert cosine_length_reward(length, correct=correct, curve=CURVE) == pytest.approx(reward)


def test_without_a_penalty_at_the_limit_the_ends_go_on() -> None:
    curve = CosineCurve(max_length=100, at_limit=None)
    assert cosine_length_reward(200, correct=True, curve=curve) == 1.0
    assert cosine_length_reward(200, correct=False, curve=curve) == 0.0


def test_right_answers_earn_less_and_wrong_ones_more_with_length() -> None:
    right = [cosine_length_reward(n, correct=True, curve=CURVE) for n in range(100)]
    wrong = [cosine_length_reward(n, correct=False, curve=CURVE) for n in range(100)]
    assert right == sorted(right, reverse=True)
    assert wrong == sorted(wrong)
    assert min(right) > max(wrong)


def test_lengths_and_curves_are_checked() -> None:
    with pytest.raises(ValueError, match="length is -1"):
        cosine_length_reward(-1, correct=True, curve=CURVE)
    with pytest.raises(ValueError, match="max_length is 0"):
        CosineCurve(max_length=0)
    with pytest.raises(ValueError, match="wrong_at_max is nan"):
        CosineCurve(max_length=1, wrong_at_max=math.nan)
