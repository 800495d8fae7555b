"""Patterns on hostile text: they are stopped, and what was stopped has no reward."""

from __future__ import annotations

import pickle

import pytest

from rewardsvc.verifiers import ErrorKind, Format, RegexMatch, Status
from rewardsvc.verifiers.regex_match import Match
from rewardsvc.verifiers.safe_regex import MAX_REGEX_CHARS, PatternTimeoutError, SafePattern
from rewardsvc.verifiers.text import Extract

BACKTRACKING = "(a|aa)+$"
ATTACK = "a" * 60 + "b"


def test_a_search_that_backtracks_is_stopped() -> None:
    with pytest.raises(PatternTimeoutError, match="more than 20 ms on 61 characters"):
        SafePattern(BACKTRACKING, time_limit_ms=20).search(ATTACK)


def test_a_stopped_search_is_no_reward_and_no_zero() -> None:
    verdict = RegexMatch(pattern=BACKTRACKING, time_limit_ms=20).verify(ATTACK)
    assert (verdict.reward, verdict.error) == (None, ErrorKind.VERIFIER_TIMEOUT)


def test_the_pattern_of_a_format_is_stopped_too() -> None:
    verdict = Format(pattern=BACKTRACKING).verify(ATTACK)
    assert (verdict.reward, verdict.error) == (None, ErrorKind.VERIFIER_TIMEOUT)


@pytest.mark.parametrize(
    ("options", "completion", "status"),
    [
        ({"pattern": "c.t"}, "a cat sat", Status.ACCEPTED),
        ({"pattern": "c.t"}, "a c\nt", Status.ACCEPTED),
        ({"pattern": "c.t"}, "a dog", Status.WRONG_ANSWER),
        ({"pattern": "c.t", "match": Match.FULL}, "a cat", Status.WRONG_ANSWER),
        ({"pattern": "c.t", "match": Match.FULL}, " cat\n", Status.ACCEPTED),
        ({"pattern": "CAT"}, "cat", Status.WRONG_ANSWER),
        ({"pattern": "CAT", "ignore_case": True}, "cat", Status.ACCEPTED),
        ({"pattern": "cat"}, "<think>cat</think>dog", Status.WRONG_ANSWER),
        ({"pattern": "cat"}, "<think>cat", Status.NO_ANSWER),
        ({"pattern": "cat", "extract": Extract.LAST_LINE}, "cat\ndog", Status.WRONG_ANSWER),
        ({"pattern": ".*"}, "", Status.NO_ANSWER),
        ({"pattern": ".*"}, "a" * (MAX_REGEX_CHARS + 1), Status.WRONG_ANSWER),
    ],
)
def test_an_answer_matches_or_does_not(options: dict, completion: str, status: Status) -> None:
    assert RegexMatch(**options).verify(completion).status is status


@pytest.mark.parametrize("pattern", ["", "(", "[a", "a{2,1}"])
def test_a_malformed_pattern_is_refused_when_it_is_given(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern is"):
        RegexMatch(pattern=pattern)


def test_a_copy_in_another_process_matches_the_same() -> None:
    copy = pickle.loads(pickle.dumps(RegexMatch(pattern="c.t")))
    assert copy.verify("cat").reward == 1.0
