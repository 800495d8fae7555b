"""The further scorers: where they read what they need, and what is no reward."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

import rewardsvc.verifiers.registry as registry
from rewardsvc.errors import ConfigError, DeadlinePassedError, ItemErrorCode
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring import JsonValue, Sample, Score, Scorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.context import CallContext, call_context
from rewardsvc.verifiers import Verdict, Verifier


class Fixed(Scorer):
    def __init__(self, config: Any, env: Any) -> None:
        self.scores = cast("list[Score]", config)

    async def score(self, samples: Any) -> list[Score]:
        return self.scores


def build(child: Any = None, **config: Any) -> Scorer:
    cls = scorer_class(config["type"])
    env = BuildEnv(name="it", base_dir=Path(), child=lambda _name: child, engine=cast("Any", None))
    return cls(cls.Config(**config), env)


def score(scorer: Scorer, *samples: Sample) -> list[Score]:
    return asyncio.run(scorer.score(samples))


def code_of(score: Score) -> ItemErrorCode | None:
    return score.error.code if score.error else None


def test_regex_stops_what_backtracks_and_scores_its_neighbours() -> None:
    stopped, right, wrong = score(
        build(type="regex", pattern="(a|aa)+$", time_limit_ms=20),
        Sample(completion="a" * 60 + "b"),
        Sample(completion="aa"),
        Sample(completion="b"),
    )
    assert code_of(stopped) is ItemErrorCode.VERIFIER_TIMEOUT
    assert (right.value, wrong.value) == (1.0, 0.0)


def test_a_call_whose_deadline_passed_stops_between_samples() -> None:
    async def late() -> None:
        with call_context(CallContext(deadline=time.monotonic() + 0.05)):
            samples = [Sample(completion="a" * 60 + "b")] * 500
            await build(type="regex", pattern="(a|aa)+$", time_limit_ms=20).score(samples)

    with pytest.raises(DeadlinePassedError):
        asyncio.run(late())


@pytest.mark.parametrize(
    ("config", "good", "bad"),
    [
        (
            {"type": "multiple_choice"},
            Sample(completion="B", answer="B"),
            Sample(completion="A", answer="B"),
        ),
        (
            {"type": "json_schema", "json_schema": {"required": ["a"]}},
            Sample(completion='{"a": 1}'),
            Sample(completion="{}"),
        ),
        (
            {"type": "json_schema"},
            Sample(completion='{"a": 1}', metadata={"schema": {"required": ["a"]}}),
            Sample(completion="{}", metadata={"schema": {"required": ["a"]}}),
        ),
        (
            {"type": "language", "min_share": 0.9},
            Sample(completion="hello", metadata={"language": "en"}),
            Sample(completion="事情", metadata={"language": "en"}),
        ),
        (
            {"type": "instructions"},
            Sample(
                completion="none", metadata={"instructions": [{"kind": "punctuation:no_comma"}]}
            ),
            Sample(completion="a, b", metadata={"instruction_id_list": ["punctuation:no_comma"]}),
        ),
        (
            {"type": "verifier", "name": "exact", "options": {"ignore_case": True}},
            Sample(completion="Paris", answer="paris"),
            Sample(completion="Rome", answer="paris"),
        ),
    ],
)
def test_good_bad_and_unreadable_samples_side_by_side(
    config: dict[str, Any], good: Sample, bad: Sample
) -> None:
    ids = Sample(completion=(1, 2), answer="B", metadata=good.metadata)
    right, wrong, unreadable = score(build(**config), good, bad, ids)
    assert (right.value, wrong.value) == (1.0, 0.0)
    assert code_of(unreadable) is ItemErrorCode.INVALID_SAMPLE


@pytest.mark.parametrize("type_name", ["multiple_choice", "json_schema", "language"])
def test_a_missing_reference_is_no_reward(type_name: str) -> None:
    (missing,) = score(build(type=type_name), Sample(completion="A"))
    assert code_of(missing) is ItemErrorCode.BAD_REFERENCE


@pytest.mark.parametrize(
    "config",
    [
        {"type": "regex", "pattern": "("},
        {"type": "regex", "pattern": ""},
        {"type": "format", "pattern": "("},
        {"type": "multiple_choice", "num_choices": 1},
        {"type": "json_schema", "json_schema": {"type": "nothing"}},
        {"type": "language", "language": "xx"},
        {"type": "instructions", "credit": "half"},
        {"type": "cosine_length", "of": "math", "max_length": 0},
    ],
)
def test_a_section_that_cannot_work_is_refused_when_it_is_read(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        build(**config)


def test_options_of_a_named_verifier_are_plain_text() -> None:
    kinds: JsonValue = ["punctuation:no_comma", "detectable_format:title"]
    scorer = build(type="verifier", name="instructions", options={"credit": "fraction"})
    (half,) = score(scorer, Sample(completion="a", metadata={"instruction_id_list": kinds}))
    assert half.value == 0.5
    with pytest.raises(ConfigError, match="half"):
        build(type="verifier", name="instructions", options={"credit": "half"})


def cosine(scores: list[Score], *samples: Sample, **options: Any) -> list[Score]:
    scorer = build(Fixed(scores, None), type="cosine_length", of="math", max_length=10, **options)
    return score(scorer, *samples)


def test_cosine_length_bends_right_and_wrong() -> None:
    right, wrong, cut = cosine(
        [Score(value=1.0), Score(value=0.0), Score(value=1.0)],
        Sample(completion=(1,) * 5),
        Sample(completion="x", metadata={"completion_length": 5}),
        Sample(completion=(1,) * 10),
    )
    assert [right.value, wrong.value, cut.value] == pytest.approx([1.5, -5.0, -10.0])
    assert right.components == {"math": 1.0, "length": 5.0}


def test_cosine_length_passes_on_what_has_no_reward() -> None:
    failed, unknown = cosine(
        [Score.failed(ItemErrorCode.BAD_REFERENCE, "unreadable"), Score(value=1.0)],
        Sample(completion=(1,)),
        Sample(completion="no length in tokens"),
    )
    assert code_of(failed) is ItemErrorCode.BAD_REFERENCE
    assert failed.error is not None
    assert failed.error.message == "math: unreadable"
    assert code_of(unknown) is ItemErrorCode.INVALID_SAMPLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Moody(Verifier):
    def verify(self, completion: str, mood: str, prompt: str = "") -> Verdict:
        if mood == "angry":
            raise KeyError(completion)
        if mood == "slow":
            time.sleep(5.0)
        return Verdict.accepted(f"{prompt}{mood}")


def test_a_users_verifier_is_a_scorer_and_its_failures_are_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "verifier_class", lambda name: Moody)

    def sample(**metadata: JsonValue) -> Sample:
        return Sample(prompt="p:", completion="c", metadata=metadata)

    scorer = build(type="verifier", name="moody", timeout_s=1.0)
    good, angry, slow, missing = score(
        scorer, sample(mood="good"), sample(mood="angry"), sample(mood="slow"), sample()
    )
    assert (good.value, good.explanation) == (1.0, "p:good")
    assert code_of(angry) is ItemErrorCode.SCORER_EXCEPTION
    assert code_of(slow) is ItemErrorCode.VERIFIER_TIMEOUT
    assert code_of(missing) is ItemErrorCode.BAD_REFERENCE


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("exakt", {}, "did you mean 'exact'"),
        ("exact", {"colour": 1}, "options"),
        ("regex", {"pattern": "("}, "regular expression"),
    ],
)
def test_a_verifier_that_cannot_be_made_is_a_configuration_error(
    name: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"scorers\.it\..*{named}"):
        build(type="verifier", name=name, options=options)
