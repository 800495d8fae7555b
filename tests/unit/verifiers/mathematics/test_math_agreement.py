"""Agreement with what Math-Verify's own tests expect, but for the differences listed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardsvc.verifiers import MathVerifier
from rewardsvc.verifiers.math.process import PoolLimits

VERIFIER = MathVerifier(limits=PoolLimits(num_workers=1, cpu_seconds=20.0))
DOCUMENT = Path(__file__).parents[4] / "docs" / "verifiers.md"
_SPELLINGS = str.maketrans({"⏎": "\n", "⇥": "\t", "␌": "\f"})

SETTING = "a setting of that test (2 digits; names of variables do not matter) that we do not have"
CHAIN = "a chain of numbers that are not equal says nothing"
SOLVED = "an inequality is to be solved: restating the question is no answer"
INTERVAL = "a solved inequality is as good as the interval, whichever the reference has"
EULER = "1 + 1/e is not 1 − 1/e"
HEDGE = "different boxes are a hedge where the reference is one number"
BROKEN = "a reference whose box is never closed is an error, not a guess"

OURS: dict[str, float | None] = {INTERVAL: 1.0, BROKEN: None}
"""Our verdict in a difference, where it is not that the answer is wrong."""

DIFFERENCES: dict[tuple[str, str], str] = {
    ("$10/9$", r"Answer $ \frac{1}{2} \$ = \frac{10}{9} $"): CHAIN,
    ("$x = 11$", "$x = 5+5+1 = 7 =11$"): CHAIN,
    ("$x = 1/3$", r"$x = 5+5+1 = 1/3 \approx 11$"): CHAIN,
    ("$z = 1 + 1 = 2$", "$z = 3+3 = 2$"): CHAIN,
    ("$x < 1$", "$-x > -1$"): SOLVED,
    ("$x <= 1$", "$-x >= -1$"): SOLVED,
    (r"$x \in [-2,7]$", r"$-2 \\le x \\le 7$"): INTERVAL,
    (r"$1 - \frac{1}{\mathrm{e}}$", r"$1 + \frac{1}{\mathrm{e}}$"): EULER,
    ("$10455$", r"\boxed{200} \boxed{255}"): HEDGE,
    (
        r"$(\begin{pmatrix}\frac{1}{3}\\ \frac{1}{5} \end{pmatrix})$",
        r"$\begin{pmatrix}0.33\\0.2 \end{pmatrix}$",
    ): SETTING,
    (r"$(\frac{3}{5},\frac{8}{3}]$", "$(0.6,2.6667]$"): SETTING,
    ("$f(x)$", "$f(y)$"): SETTING,
    (
        r"\\boxed{W(n) = 1 \\text{ and } W(n) = -1",
        "W(x)=1orW(x)=-1",
    ): BROKEN,
}
"""Reference and completion → why our verdict is another one."""


def cases() -> list[tuple[float, str, str]]:
    lines = Path(__file__).with_name("agreement.txt").read_text("utf-8").splitlines()
    rows = [line.translate(_SPELLINGS).split(" ;; ") for line in lines if line[:2] != "# "]
    return [(float(expected), gold, completion) for expected, gold, completion in rows]


@pytest.mark.parametrize(("expected", "gold", "completion"), cases())
def test_verdict_is_what_math_verify_expects(expected: float, gold: str, completion: str) -> None:
    verdict = VERIFIER.verify(completion, gold)
    why = DIFFERENCES.get((gold, completion))
    owed = expected if why is None else OURS.get(why, 0.0)
    assert verdict.reward == owed, verdict.explanation


def test_every_difference_is_a_case_and_is_documented() -> None:
    known = {(gold, completion) for _, gold, completion in cases()}
    assert set(DIFFERENCES) <= known
    page = DOCUMENT.read_text("utf-8")
    for reason in set(DIFFERENCES.values()) - {SETTING}:
        assert f"| {reason} |" in page, reason
