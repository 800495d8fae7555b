"""The scorers that look at the shape of a text: overlong, length_penalty, repetition."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from rewardsvc.errors import ItemErrorCode
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring import JsonValue, Sample, Score, Scorer, Verdict
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase


class Helpful(Scorer):
    """Gives 2.0 for everything."""

    Config = ScorerConfigBase

    def __init__(self) -> None:
        pass

    @property
    def version(self) -> str:
        return "7"

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [
            Score(value=2.0, steps=(1.0, 3.0), verdict=Verdict.ACCEPTED, explanation="yes")
            for _ in samples
        ]


def build(**config: Any) -> Scorer:
    cls = scorer_class(config["type"])
    env = BuildEnv(name="it", base_dir=Path(), child=lambda _: Helpful(), engine=cast("Any", None))
    return cls(cls.Config(**config), env)


def score_one(scorer: Scorer, sample: Sample) -> Score:
    [score] = asyncio.run(scorer.score([sample]))
    return score


@pytest.mark.parametrize(
    ("sample", "unit", "penalty"),
    [
        (Sample(completion=tuple(range(9))), "tokens", -0.5),
        (Sample(completion="?", metadata={"completion_length": 9}), "tokens", -0.5),
        (Sample(completion=""), "tokens", 0.0),
        (Sample(completion="a b c d e f g h i"), "words", -0.5),
        (Sample(completion="123456789"), "chars", -0.5),
        (Sample(completion=tuple(range(11))), "tokens", -1.0),
    ],
)
def test_overlong_measures_in_its_unit(sample: Sample, unit: str, penalty: float) -> None:
    scorer = build(type="overlong", max_length=10, cache_length=2, unit=unit)
    assert score_one(scorer, sample).value == pytest.approx(penalty)


@pytest.mark.parametrize("length", [None, -1, "9", True, 1.5])
def test_a_text_without_its_number_of_tokens_has_no_reward(length: JsonValue) -> None:
    sample = Sample(completion="text", metadata={"completion_length": length})
    score = score_one(build(type="overlong", max_length=10, cache_length=2), sample)
    assert score.error is not None
    assert score.error.code is ItemErrorCode.INVALID_SAMPLE
    assert "metadata.completion_length" in score.error.message


def test_token_ids_have_no_words() -> None:
    scorer = build(type="overlong", max_length=10, cache_length=2, unit="words")
    score = score_one(scorer, Sample(completion=(1, 2)))
    assert score.error is not None
    assert score.error.code is ItemErrorCode.INVALID_SAMPLE


def test_overlong_refuses_a_cache_wider_than_the_limit() -> None:
    with pytest.raises(ValidationError, match="cache_length is 11"):
        build(type="overlong", max_length=10, cache_length=11)


def test_length_penalty_is_added_to_the_other_scorers_reward() -> None:
    scorer = build(type="length_penalty", of="rm", target=2, weight=0.5, unit="words")
    score = score_one(scorer, Sample(completion="a b c d"))
    assert score.value == pytest.approx(1.5)
    assert score.components == {"rm": 2.0, "length": 4.0, "length_penalty": -0.5}
    assert (score.steps, score.verdict, score.explanation) == (
        (1.0, 3.0),
        Verdict.ACCEPTED,
        "yes",
    )
    assert scorer.version


def test_length_penalty_may_stand_alone() -> None:
    scorer = build(type="length_penalty", target=2, unit="chars")
    assert score_one(scorer, Sample(completion="abc")).value == pytest.approx(-0.5)
    assert score_one(scorer, Sample(completion="ab")).value == 0.0
    assert scorer.version == ""


def test_repetition_counts_words_or_token_ids() -> None:
    scorer = build(type="repetition", ngram_size=1, max_penalty=2.0)
    assert score_one(scorer, Sample(completion="a b a c")).value == pytest.approx(-0.5)
    assert score_one(scorer, Sample(completion=(5, 5, 5, 5))).value == pytest.approx(-1.5)
    assert score_one(scorer, Sample(completion="")).value == 0.0
