"""Length-controlled win rates: the fit against plain gradient ascent, and what it takes out."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from rewardsvc.policy_client.evaluation import (
    LengthControlled,
    length_controlled_win_rate,
    win_rate,
)

NAN = math.nan


def drawn(seed: int, *, skill: float, bias: float, count: int = 4000) -> tuple[list, list]:
    """Comparisons in which ours is longer in the mean, and length counts."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(200.0, 300.0, count)
    chance = 1 / (1 + np.exp(-(skill + bias * np.tanh(differences / differences.std()))))
    return (generator.random(count) < chance).astype(float).tolist(), differences.tolist()


def fit(points: list, differences: list, **more: object) -> LengthControlled:
    return length_controlled_win_rate(points, differences, **{"num_resamples": 50} | more)  # type: ignore[arg-type]


def test_the_fit_is_where_plain_ascent_ends() -> None:
    shuffler = random.Random(0)
    points = [shuffler.choice([0.0, 0.5, 1.0]) for _ in range(30)]
    differences = [shuffler.gauss(20, 50) for _ in points]
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / len(differences))
    a = b = 0.0
    for _ in range(20_000):
        up_a, up_b = -a / 25.0, -b / 25.0
        for y, d in zip(points, differences, strict=True):
            x = math.tanh(d / spread)
            missed = y - 1 / (1 + math.exp(-a - b * x))
            up_a += missed
            up_b += missed * x
        a, b = a + 0.1 * up_a, b + 0.1 * up_b
        if abs(up_a) + abs(up_b) < 1e-13:
            break
    found = fit(points, differences)
    assert found.value == pytest.approx(1 / (1 + math.exp(-a)), abs=1e-9)
    assert found.length_effect == pytest.approx(b, abs=1e-9)
    assert found.low <= found.value <= found.high


def test_what_length_has_won_is_taken_out() -> None:
    points, differences = drawn(0, skill=0.0, bias=1.5)
    assert np.mean(points) > 0.6
    found = fit(points, differences)
    assert found.low < 0.5 < found.high
    assert found.length_effect == pytest.approx(1.5, abs=0.3)


def test_skill_is_left_in() -> None:
    points, differences = drawn(1, skill=0.8, bias=-0.7)
    assert fit(points, differences).value == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.03)


def test_equal_lengths_leave_the_plain_rate() -> None:
    points = [1.0] * 300 + [0.0] * 100
    found = fit(points, [7.0] * 400)
    assert found.value == pytest.approx(0.75, abs=1e-3)
    assert found.length_effect == 0.0


@pytest.mark.parametrize("points", [[1.0] * 20, [0.0] * 20])
def test_one_side_that_wins_all_has_a_finite_answer(points: list[float]) -> None:
    found = fit(points, list(range(20)))
    assert found.value == pytest.approx(points[0], abs=0.05)
    assert found.low <= found.value <= found.high
    assert found.high - found.low > 0.1, "twenty comparisons leave that much open"
    whole = win_rate(points, [0.5] * 20, groups=list(range(20)))
    assert (found.low, found.high) == (whole.low, whole.high)


def test_the_longer_that_always_wins_says_nothing_of_skill() -> None:
    differences = [float(d) for d in range(-20, 21) if d]
    found = fit([float(d > 0) for d in differences], differences)
    assert found.value == pytest.approx(0.5)
    assert found.length_effect > 4.0


def test_missing_verdicts_are_left_out_and_none_is_unknown() -> None:
    points, differences = drawn(2, skill=0.3, bias=0.5, count=60)
    groups = [number // 2 for number in range(60)]
    whole = fit(points, differences, groups=groups)
    more = fit([*points, NAN, NAN], [*differences, 1e9, -1e9], groups=[*groups, 30, "lost"])
    assert more == whole
    assert math.isnan(fit([NAN], [1.0]).value)
    assert math.isnan(fit([], []).high)


def test_comparisons_of_one_prompt_are_drawn_together() -> None:
    points, differences = drawn(3, skill=0.0, bias=0.0, count=40)
    ten = [value for value in points for _ in range(10)]
    wide = [value for value in differences for _ in range(10)]
    alone = fit(ten, wide, num_resamples=200)
    together = fit(ten, wide, num_resamples=200, groups=[row // 10 for row in range(400)])
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert together == fit(ten, wide, num_resamples=200, groups=[row // 10 for row in range(400)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit([1.0], []), "1 points and 0 differences"),
        (lambda: fit([1.0], [1.0], groups=[]), "1 points and 0 groups"),
        (lambda: fit([1.0], [1.0], confidence=1.0), "confidence is 1.0"),
    ],
)
def test_malformed_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
