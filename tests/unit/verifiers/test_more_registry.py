"""A verifier of one's own: ten lines, arguments by name, found by an entry point."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Any

import pytest

import rewardsvc.verifiers.registry as registry
from rewardsvc.verifiers import ErrorKind, Status, Verdict, Verifier, make_verifier
from rewardsvc.verifiers.base import Judge
from rewardsvc.verifiers.registry import BUILTIN, verifier_class, verifier_names


@dataclass(frozen=True, slots=True, kw_only=True)
class EndsWith(Verifier):
    ignore_case: bool = False

    def verify(self, completion: str, suffix: str, bonus: float = 0.0) -> Verdict:
        text = completion.lower() if self.ignore_case else completion
        if text.endswith(suffix):
            return Verdict(status=Status.PARTIAL, reward=1.0 + bonus)
        return Verdict.rejected("it ends otherwise")


def brevity(completion: str) -> float:
    return 1.0 / (1 + len(completion))


def installed(**targets: str) -> Any:
    found = [EntryPoint(n, t, registry.ENTRY_POINT_GROUP) for n, t in targets.items()]
    return lambda **wanted: EntryPoints(found).select(**wanted)


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_built_in_verifier_takes_its_arguments_by_name(name: str) -> None:
    cls = verifier_class(name)
    options = {"format": {"preset": "think"}, "regex": {"pattern": "a"}}.get(name, {})
    judge = Judge.of(make_verifier(name, options))
    assert judge.parameters[0] == "completion"
    assert judge.name
    assert cls.__name__ in repr(make_verifier(name, options))


def test_an_installed_verifier_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = installed(ends_with=f"{__name__}:EndsWith", bad="math:pi", exact="math:pi")
    monkeypatch.setattr(registry, "entry_points", entries)
    module = ModuleType(__name__)
    module.EndsWith = EndsWith  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, __name__, module)
    assert "ends_with" in verifier_names()
    verifier = make_verifier("ends_with", {"ignore_case": True})
    assert verifier.verify("The END", "end").reward == 1.0
    with pytest.raises(ValueError, match="no class with a `verify`"):
        make_verifier("bad")
    assert verifier_class("exact").__name__ == "ExactMatch"


def test_names_and_options_that_are_wrong_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'countdown'"):
        make_verifier("countdwn")
    with pytest.raises(ValueError, match="options: exact does not take"):
        make_verifier("exact", {"colour": "red"})


def test_a_judge_gives_what_is_asked_for_and_no_more() -> None:
    judge = Judge.of(EndsWith())
    assert (judge.name, judge.required, judge.optional) == (
        "ends_with",
        ("completion", "suffix"),
        ("bonus",),
    )
    values = {"completion": "the end", "suffix": "end", "answer": "?"}
    assert judge(values).reward == 1.0
    assert judge({**values, "bonus": 0.5}).reward == 1.5
    missing = judge({"completion": "x", "suffix": None})
    assert missing.error is ErrorKind.BAD_REFERENCE
    assert "suffix is missing" in missing.explanation


@pytest.mark.parametrize(
    ("result", "reward", "status"),
    [
        (1, 1.0, Status.ACCEPTED),
        (0.0, 0.0, Status.WRONG_ANSWER),
        (-0.5, -0.5, Status.PARTIAL),
        (True, 1.0, Status.ACCEPTED),
        (None, None, Status.ERROR),
        (math.nan, None, Status.ERROR),
        (math.inf, None, Status.ERROR),
    ],
)
def test_a_functions_number_is_a_verdict(result: Any, reward: Any, status: Status) -> None:
    def judge(completion: str) -> Any:
        return result

    verdict = Judge.of(judge)({"completion": ""})
    assert (verdict.reward, verdict.status) == (reward, status)


def test_what_is_no_reward_is_a_type_error() -> None:
    def wordy(completion: str) -> Any:
        return "1.0"

    with pytest.raises(TypeError, match="wordy returned '1.0'"):
        Judge.of(wordy)({"completion": ""})


@pytest.mark.parametrize("thing", [EndsWith, 3, "exact", None])
def test_what_does_not_judge_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="does not judge"):
        Judge.of(thing)


def test_a_function_keeps_its_name() -> None:
    assert Judge.of(brevity).name == "brevity"
    assert Judge.of(partial(brevity)).name == "brevity"
