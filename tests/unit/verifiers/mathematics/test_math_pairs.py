"""Hard pairs of reference and answer, with the verdict that a careful mathematician owes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardsvc.verifiers import MathVerifier
from rewardsvc.verifiers.math.process import PoolLimits

VERIFIER = MathVerifier(limits=PoolLimits(num_workers=1, cpu_seconds=20.0))


def pairs() -> list[tuple[str, str, str]]:
    lines = Path(__file__).with_name("pairs.txt").read_text("utf-8").splitlines()
    rows = [line for line in lines if line[:2] in ("= ", "! ")]
    return [(row[0], *row[2:].split(" ;; ")) for row in rows]  # type: ignore[misc]


@pytest.mark.parametrize(("mark", "reference", "answer"), pairs())
def test_pair_gets_the_verdict_it_is_owed(mark: str, reference: str, answer: str) -> None:
    verdict = VERIFIER.verify(rf"so \boxed{{{answer}}}", reference)
    assert verdict.reward == (1.0 if mark == "=" else 0.0), verdict.explanation
    assert verdict.explanation


def test_there_are_pairs_of_both_kinds() -> None:
    marks = [mark for mark, _, _ in pairs()]
    assert marks.count("=") >= 250
    assert marks.count("!") >= 200
