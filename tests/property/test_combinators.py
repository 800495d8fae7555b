"""Combinators against plain loops, on random values and errors."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.errors import ItemErrorCode
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring import Sample, Score, Scorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.moments import RunningMoments
from rewardsvc.scoring.config import ScorerConfigBase

NAMES = ("a", "b", "c")
numbers = st.floats(-1e6, 1e6, allow_nan=False)
rows = st.lists(st.tuples(*[st.none() | numbers for _ in NAMES]), max_size=8)


class Column(Scorer):
    """Scores sample i with entry i; None is an error."""

    Config = ScorerConfigBase

    def __init__(self, values: Sequence[float | None]) -> None:
        self._values = values

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [
            Score.failed(ItemErrorCode.MODEL_FAILURE, "broken")
            if (value := self._values[int(sample.id)]) is None
            else Score(value=value)
            for sample in samples
        ]


def combined(table: list[tuple[float | None, ...]], **config: Any) -> list[float | None]:
    cls = scorer_class(config["type"])
    children = {name: Column([row[i] for row in table]) for i, name in enumerate(NAMES)}
    env = BuildEnv(name="it", base_dir=Path(), child=children.__getitem__, engine=cast("Any", None))
    samples = [Sample(completion="", id=str(i)) for i in range(len(table))]
    scores = asyncio.run(cls(cls.Config(**config), env).score(samples))
    for score in scores:
        assert score.value is not None or score.error is not None
    return [score.value for score in scores]


def assert_close(actual: list[float | None], expected: list[float | None]) -> None:
    assert len(actual) == len(expected)
    for left, right in zip(actual, expected, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            assert left == pytest.approx(right, rel=1e-9, abs=1e-6)


@given(rows, st.tuples(numbers, numbers, numbers))
def test_sum_agrees_with_a_loop(
    table: list[tuple[float | None, ...]], weights: tuple[float, ...]
) -> None:
    expected: list[float | None] = []
    for row in table:
        total: float | None = 0.0
        for value, weight in zip(row, weights, strict=True):
            total = None if value is None or total is None else total + weight * value
        expected.append(None if total is None else min(max(total, -10.0), 10.0))
    of = dict(zip(NAMES, weights, strict=True))
    assert_close(combined(table, type="sum", of=of, clip=[-10, 10]), expected)


@given(rows)
def test_product_min_and_max_agree_with_a_loop(table: list[tuple[float | None, ...]]) -> None:
    for kind, reduce in (("product", math.prod), ("min", min), ("max", max)):
        expected = [None if None in row else float(reduce(row)) for row in table]
        assert_close(combined(table, type=kind, of=list(NAMES)), expected)


@given(rows, st.floats(0, 3))
def test_ensemble_agrees_with_the_statistics_module(
    table: list[tuple[float | None, ...]], std_coef: float
) -> None:
    expected: list[float | None] = []
    for row in table:
        members = [value for value in row if value is not None]
        complete = len(members) == len(NAMES)
        expected.append(
            statistics.mean(members) - std_coef * statistics.pstdev(members) if complete else None
        )
    actual = combined(
        table, type="ensemble", of=list(NAMES), reduce="mean-minus-std", std_coef=std_coef
    )
    assert_close(actual, expected)


@given(rows)
def test_running_normalisation_agrees_with_the_statistics_module(
    table: list[tuple[float | None, ...]],
) -> None:
    rewards = [row[0] for row in table if row[0] is not None]
    std = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
    if 0.0 < std < 1e-3:
        return  # rounding decides here
    expected = [
        None if row[0] is None else (row[0] - statistics.mean(rewards)) / (std or 1.0)
        for row in table
    ]
    assert_close(combined(table, type="normalize", of="a", running=True), expected)


@given(st.lists(numbers, max_size=30), st.none() | st.floats(0.01, 0.99))
def test_running_moments_are_finite_and_within_the_range(
    values: list[float], momentum: float | None
) -> None:
    moments = RunningMoments(momentum)
    for value in values:
        assert moments.add(value)
    assert math.isfinite(moments.std)
    assert moments.std >= 0.0
    assert moments.count == len(values)
    if values:
        slack = 1e-9 * max(map(abs, values))
        assert min(values) - slack <= moments.mean <= max(values) + slack
