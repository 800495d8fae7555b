"""What each combinator makes of its children's scores."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from rewardsvc.errors import ItemErrorCode, QueueFullError
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring import Sample, Score, Scorer, Verdict
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase

SAMPLE = Sample(completion="two words")


class Fixed(Scorer):
    """Gives the same score for every sample, or what a function of the sample says."""

    Config = ScorerConfigBase

    def __init__(self, score: Score | Callable[[Sample], Score], version: str = "") -> None:
        self._score = score
        self._version = version
        self.num_calls = 0

    @property
    def version(self) -> str:
        return self._version

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        self.num_calls += 1
        await asyncio.sleep(0)
        return [s if isinstance(s := self._score, Score) else s(x) for x in samples]


def value(number: float, **parts: Any) -> Fixed:
    return Fixed(Score(value=number, **parts))


FAILING = Fixed(Score.failed(ItemErrorCode.MODEL_FAILURE, "out of memory", retryable=True))


def build(children: Mapping[str, Scorer], **config: Any) -> Scorer:
    cls = scorer_class(config["type"])
    env = BuildEnv(name="it", base_dir=Path(), child=children.__getitem__, engine=cast("Any", None))
    return cls(cls.Config(**config), env)


async def score_one(children: Mapping[str, Scorer], **config: Any) -> Score:
    [score] = await build(children, **config).score([SAMPLE])
    return score


async def test_sum_weighs_and_clips() -> None:
    children = {"a": value(2.0), "b": value(-1.0)}
    assert (await score_one(children, type="sum", of={"a": 0.5, "b": 3.0})).value == -2.0
    clipped = await score_one(children, type="sum", of={"a": 0.5, "b": 3.0}, clip=[-1, 1])
    assert clipped.value == -1.0
    assert clipped.components == {"a": 2.0, "b": -1.0}


async def test_sum_has_the_verdict_of_its_heaviest_judged_child() -> None:
    children = {
        "rm": value(5.0),
        "think": value(1.0, verdict=Verdict.ACCEPTED),
        "math": value(0.0, verdict=Verdict.WRONG_ANSWER, explanation="3 is not 4"),
    }
    score = await score_one(children, type="sum", of={"rm": 9.0, "think": 0.1, "math": 1.0})
    assert score.verdict is Verdict.WRONG_ANSWER
    assert score.explanation == "math: 3 is not 4"


async def test_product_is_a_gate_that_names_what_failed() -> None:
    children = {
        "think": value(0.0, verdict=Verdict.WRONG_ANSWER, explanation="no thoughts"),
        "math": value(1.0, verdict=Verdict.ACCEPTED, explanation="right"),
    }
    score = await score_one(children, type="product", of=["math", "think"])
    assert score.value == 0.0
    assert score.verdict is Verdict.WRONG_ANSWER
    assert score.explanation == "think: no thoughts"


async def test_product_counts_a_child_as_often_as_it_is_named() -> None:
    child = value(3.0, verdict=Verdict.ACCEPTED)
    score = await score_one({"a": child}, type="product", of=["a", "a"])
    assert score.value == 9.0
    assert score.verdict is Verdict.ACCEPTED
    assert child.num_calls == 1


async def test_min_and_max_have_the_verdict_of_the_child_they_took() -> None:
    children = {
        "a": value(0.0, verdict=Verdict.NO_ANSWER, explanation="nothing"),
        "b": value(1.0, verdict=Verdict.ACCEPTED),
    }
    low = await score_one(children, type="min", of=["b", "a"])
    high = await score_one(children, type="max", of=["a", "b"])
    assert (low.value, low.verdict, low.explanation) == (0.0, Verdict.NO_ANSWER, "a: nothing")
    assert (high.value, high.verdict) == (1.0, Verdict.ACCEPTED)


@pytest.mark.parametrize(
    ("reduce", "expected"), [("mean", 2.0), ("min", 0.0), ("mean-minus-std", 2.0 - 0.5 * 2.0)]
)
async def test_ensemble_reduces_and_shows_disagreement(reduce: str, expected: float) -> None:
    children = {"a": value(0.0), "b": value(4.0)}
    score = await score_one(children, type="ensemble", of=["a", "b"], reduce=reduce, std_coef=0.5)
    assert score.value == pytest.approx(expected)
    assert score.components == {"a": 0.0, "b": 4.0, "disagreement": 2.0}


async def test_ensemble_members_that_agree_do_not_disagree() -> None:
    score = await score_one({n: value(0.1) for n in "abc"}, type="ensemble", of=["a", "b", "c"])
    assert score.value == 0.1
    assert score.components["disagreement"] == 0.0


async def test_clip_moves_value_and_steps_into_the_bounds() -> None:
    child = value(7.0, steps=(-9.0, 0.5), verdict=Verdict.PARTIAL, components={"len": 3.0})
    score = await score_one({"a": child}, type="clip", of="a", min=-1, max=2)
    assert (score.value, score.steps) == (2.0, (-1.0, 0.5))
    assert score.verdict is Verdict.PARTIAL
    assert score.components == {"a": 7.0, "a/len": 3.0}


async def test_fixed_normalisation_is_affine_in_value_and_steps() -> None:
    child = value(7.0, steps=(3.0, 5.0))
    score = await score_one({"a": child}, type="normalize", of="a", mean=3, std=2, clip=[-9, 1.5])
    assert (score.value, score.steps) == (1.5, (0.0, 1.0))


async def test_normalisation_that_overflows_a_step_is_an_error() -> None:
    child = value(0.0, steps=(1e300,))
    score = await score_one({"a": child}, type="normalize", of="a", mean=0, std=1e-300)
    assert score.error is not None
    assert score.error.code is ItemErrorCode.NON_FINITE


async def test_running_normalisation_counts_rewards_only() -> None:
    values = iter([1.0, None, 3.0, 5.0])

    def next_score(_: Sample) -> Score:
        number = next(values)
        if number is None:
            return Score.failed(ItemErrorCode.TOO_LONG, "too long")
        return Score(value=number)

    scorer = build({"a": Fixed(next_score)}, type="normalize", of="a", running=True)
    scores = await scorer.score([SAMPLE] * 4)
    assert [s.value for s in scores] == [-1.0, None, 0.0, 1.0]
    assert scores[1].error is not None
    assert scores[1].error.message == "a: too long"


async def test_running_normalisation_of_one_or_of_equal_rewards_only_centres() -> None:
    scorer = build({"a": value(0.1)}, type="normalize", of="a", running=True)
    for _ in range(3):
        [score] = await scorer.score([SAMPLE])
        assert score.value == 0.0


async def test_running_normalisation_survives_a_reward_beyond_the_floats() -> None:
    numbers = iter([1.0, 1e308, -1e308, 2.0])
    child = Fixed(lambda _: Score(value=next(numbers)))
    scorer = build({"a": child}, type="normalize", of="a", running=True)
    first, second, third, last = await scorer.score([SAMPLE] * 4)
    assert first.value is not None
    for score in (second, third):
        assert score.error is not None
        assert score.error.code is ItemErrorCode.NON_FINITE
    assert last.value is not None
    assert math.isfinite(last.value)


async def test_concurrent_calls_share_the_running_statistics() -> None:
    numbers = iter(float(n) for n in range(100))
    child = Fixed(lambda _: Score(value=next(numbers)))
    scorer = build({"a": child}, type="normalize", of="a", running=True)
    await asyncio.gather(*(scorer.score([SAMPLE] * 10) for _ in range(10)))
    assert scorer.version.endswith("+100")
    assert scorer._moments.mean == pytest.approx(49.5)  # type: ignore[attr-defined]


async def test_momentum_follows_a_reward_that_moves() -> None:
    numbers = iter([0.0] * 10 + [100.0] * 200)
    child = Fixed(lambda _: Score(value=next(numbers)))
    scorer = build({"a": child}, type="normalize", of="a", running=True, momentum=0.9)
    scores = await scorer.score([SAMPLE] * 210)
    assert scores[-1].value == pytest.approx(0.0, abs=0.1)


COMBINATORS: list[dict[str, Any]] = [
    {"type": "sum", "of": {"good": 1.0, "bad": 0.0}},
    {"type": "product", "of": ["zero", "bad"]},
    {"type": "min", "of": ["good", "bad"]},
    {"type": "max", "of": ["good", "bad"]},
    {"type": "ensemble", "of": ["good", "bad"]},
    {"type": "clip", "of": "bad", "min": 0, "max": 1},
    {"type": "normalize", "of": "bad", "mean": 0, "std": 1},
    {"type": "normalize", "of": "bad", "running": True},
    {"type": "length_penalty", "of": "bad", "target": 1, "unit": "words"},
]


@pytest.mark.parametrize("config", COMBINATORS, ids=lambda c: f"{c['type']}")
async def test_an_error_of_a_child_is_the_samples_error_and_never_a_zero(
    config: dict[str, Any],
) -> None:
    children = {"good": value(1.0), "zero": value(0.0), "bad": FAILING}
    score = await score_one(children, **config)
    assert score.value is None
    assert score.error is not None
    assert score.error.code is ItemErrorCode.MODEL_FAILURE
    assert score.error.message == "bad: out of memory"
    assert score.error.retryable


async def test_an_error_harms_no_other_sample() -> None:
    def fussy(sample: Sample) -> Score:
        if sample.id == "bad":
            return Score.failed(ItemErrorCode.TOO_LONG, "too long")
        return Score(value=1.0)

    scorer = build({"a": Fixed(fussy), "b": value(2.0)}, type="sum", of={"a": 1, "b": 1})
    samples = [Sample(completion="", id=name) for name in ("good", "bad", "good")]
    assert [s.value for s in await scorer.score(samples)] == [3.0, None, 3.0]


async def test_overflow_is_an_error_not_an_infinity() -> None:
    children = {"a": value(1e308), "b": value(-1e308)}
    for config in (
        {"type": "sum", "of": {"a": 10.0}},
        {"type": "product", "of": ["a", "a"]},
        {"type": "ensemble", "of": ["a", "b"], "reduce": "mean-minus-std"},
    ):
        score = await score_one(children, **config)
        assert score.error is not None
        assert score.error.code is ItemErrorCode.NON_FINITE


async def test_components_nest_by_name() -> None:
    inner = build({"x": value(1.0)}, type="sum", of={"x": 2.0})
    score = await score_one({"inner": inner}, type="sum", of={"inner": 1.0})
    assert score.components == {"inner": 2.0, "inner/x": 1.0}


async def test_children_are_scored_side_by_side() -> None:
    arrived = 0
    everyone = asyncio.Event()

    class Waiting(Fixed):
        async def score(self, samples: Sequence[Sample]) -> list[Score]:
            nonlocal arrived
            arrived += 1
            if arrived == 3:
                everyone.set()
            await asyncio.wait_for(everyone.wait(), 30)
            return [Score(value=1.0) for _ in samples]

    children = {name: Waiting(Score(value=0.0)) for name in "abc"}
    assert (await score_one(children, type="min", of=["a", "b", "c"])).value == 1.0


async def test_a_call_error_of_one_child_ends_the_call_and_cancels_the_others() -> None:
    cancelled = asyncio.Event()

    class Endless(Fixed):
        async def score(self, samples: Sequence[Sample]) -> list[Score]:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return []

    class Full(Fixed):
        async def score(self, samples: Sequence[Sample]) -> list[Score]:
            await asyncio.sleep(0.01)
            raise QueueFullError("no room", retry_delay_ms=7)

    children = {"slow": Endless(Score(value=0.0)), "full": Full(Score(value=0.0))}
    with pytest.raises(QueueFullError, match="no room"):
        await score_one(children, type="min", of=["slow", "full"])
    assert cancelled.is_set()


def test_the_version_follows_the_childrens() -> None:
    def version(**versions: str) -> str:
        children = {name: Fixed(Score(value=0.0), v) for name, v in versions.items()}
        return build(children, type="min", of=sorted(versions)).version

    assert version(a="", b="") == ""
    assert version(a="1", b="") != version(a="2", b="")
    assert version(a="1", b="") != version(a="", b="1")
    assert version(a="1", b="2") == version(a="1", b="2")


async def test_no_samples_give_no_scores() -> None:
    assert await build({"a": value(1.0)}, type="min", of=["a"]).score([]) == []


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"type": "sum", "of": {}}, "at least 1"),
        ({"type": "sum", "of": {"a": math.nan}}, "finite"),
        ({"type": "sum", "of": {"a": 1}, "clip": [1, -1]}, "low <= high"),
        ({"type": "min", "of": []}, "at least 1"),
        ({"type": "ensemble", "of": ["a"], "reduce": "median"}, "mean-minus-std"),
        ({"type": "ensemble", "of": ["a"], "std_coef": -1}, "greater than or equal to 0"),
        ({"type": "clip", "of": "a", "min": 2, "max": 1}, "min <= max"),
        ({"type": "normalize", "of": "a"}, "both mean and std"),
        ({"type": "normalize", "of": "a", "mean": 0}, "both mean and std"),
        ({"type": "normalize", "of": "a", "mean": 0, "std": 0}, "greater than 0"),
        ({"type": "normalize", "of": "a", "running": True, "mean": 0}, "leave out"),
        ({"type": "normalize", "of": "a", "mean": 0, "std": 1, "momentum": 0.9}, "running"),
        ({"type": "length_penalty", "target": 0}, "greater than or equal to 1"),
        ({"type": "max", "of": ["a"], "wieght": 1}, "wieght"),
    ],
)
def test_a_bad_section_is_refused_by_name(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        scorer_class(config["type"]).Config(**config)
