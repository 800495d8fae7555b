"""Estimators of evaluation against enumeration, and what they do with missing verdicts."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from rewardsvc.policy_client.evaluation import (
    best_of_n,
    best_of_n_curve,
    calibration,
    majority_vote,
    pair_report,
    pass_at_k,
    rewardbench_report,
    wilson_interval,
    win_rate,
)

NAN = math.nan


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(k: int) -> None:
    problems = [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]]
    want = [
        np.mean([max(subset) for subset in itertools.combinations(problem, k)])
        for problem in problems
    ]
    found = pass_at_k(problems, k)
    assert found.value == pytest.approx(np.mean(want))
    assert found.standard_error == pytest.approx(np.std(want, ddof=1) / 2)
    assert (found.num_problems, found.num_skipped) == (4, 0)


def test_pass_at_k_leaves_out_what_has_no_verdict() -> None:
    found = pass_at_k([[1, NAN, 0], [NAN, NAN, 1]], 2)
    assert (found.value, found.num_problems, found.num_skipped) == (1.0, 1, 1)
    assert math.isnan(pass_at_k([[NAN]], 1).value)
    with pytest.raises(ValueError, match="k is 0"):
        pass_at_k([[1]], 0)


def test_pass_at_k_of_many_samples_is_exact() -> None:
    assert pass_at_k([[1] + [0] * 999], 1000).value == 1.0
    assert pass_at_k([[1] + [0] * 999], 500).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("answers", "rewards", "weights", "want"),
    [
        (["4", "4", "5"], [1, 1, 0], None, 1.0),
        (["4", "5", "5"], [1, 0, 0], None, 0.0),
        (["4", "5"], [1, 0], None, 0.5),
        (["4", "5", "5"], [1, 0, 0], [3.0, 1.0, 1.0], 1.0),
        ([None, "4"], [NAN, 1], None, 1.0),
        (["4", "5", "5"], [1, 0, 0], [1.0, NAN, NAN], 1.0),
        ([None], [NAN], None, NAN),
        (["4"], [NAN], None, NAN),
        (["4", "4"], [NAN, 1], None, 1.0),
    ],
)
def test_majority_vote(answers: list, rewards: list, weights: list | None, want: float) -> None:
    assert majority_vote(answers, rewards, weights=weights) == pytest.approx(want, nan_ok=True)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_is_the_mean_over_all_draws(n: int) -> None:
    shuffler = random.Random(n)
    scores = [shuffler.choice([0.1, 0.5, 0.9]) for _ in range(6)]  # with ties
    quality = [shuffler.random() for _ in range(6)]
    draws = []
    for subset in itertools.combinations(range(6), n):
        best = max(scores[i] for i in subset)
        tied = [quality[i] for i in subset if scores[i] == best]
        draws.append(sum(tied) / len(tied))
    assert best_of_n(scores, quality, n) == pytest.approx(np.mean(draws))


def test_best_of_n_curve_lies_between_random_and_oracle() -> None:
    scores = [[0.1, 0.9, 0.5, NAN], [0.2, 0.1, NAN, 0.4]]
    quality = [[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]
    curve = best_of_n_curve(scores, quality, [1, 2, 3, 4])
    assert curve.num_problems == (2, 2, 2, 0)
    assert curve.random == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert curve.chosen[0] == pytest.approx(curve.random)
    assert curve.oracle[2] == 1.0
    assert curve.chosen[2] == pytest.approx(0.5)
    assert math.isnan(curve.chosen[3])
    assert all(a <= b for a, b in zip(curve.chosen[:3], curve.oracle[:3], strict=True))


def test_win_rate_counts_ties_half_and_missing_not_at_all() -> None:
    found = win_rate([1.0, 2.0, 3.0, NAN, 0.0], [0.0, 2.0, 4.0, 1.0, NAN])
    assert (found.wins, found.ties, found.losses, found.num_missing) == (1, 1, 1, 2)
    assert found.value == 0.5
    assert found.low < 0.5 < found.high


def test_wilson_interval_holds_its_promise() -> None:
    generator = np.random.default_rng(0)
    for true_share in (0.03, 0.5, 0.9):
        hits = 0
        for successes in generator.binomial(40, true_share, 1000):
            low, high = wilson_interval(int(successes), 40)
            hits += low <= true_share <= high
        assert 0.92 <= hits / 1000 <= 0.99
    assert wilson_interval(0, 10)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_bootstrap_over_prompts_is_wider_than_one_over_comparisons() -> None:
    generator = np.random.default_rng(1)
    per_prompt = np.repeat(generator.random(20) < 0.5, 10)  # all ten alike
    ours = per_prompt.astype(float)
    theirs = np.full(200, 0.5)
    alone = win_rate(ours, theirs)
    grouped = win_rate(ours, theirs, groups=np.repeat(np.arange(20), 10).tolist())
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    again = win_rate(ours, theirs, groups=np.repeat(np.arange(20), 10).tolist())
    assert (again.low, again.high) == (grouped.low, grouped.high)


def test_pair_report_by_subset() -> None:
    report = pair_report(
        [1.0, 2.0, 0.0, NAN], [0.0, 2.0, 1.0, 0.0], ["easy", "easy", "hard", "hard"]
    )
    assert report.overall.accuracy == 0.5
    assert report.overall.num_missing == 1
    assert report.subsets["easy"].accuracy == 0.75
    assert report.subsets["hard"].accuracy == 0.0
    assert report.subsets["hard"].num_pairs == 1
    assert report.sections == {}


def test_rewardbench_weighs_math_like_all_code_together() -> None:
    subsets = ["math-prm"] + ["hep-go"] * 3 + ["hep-js"] * 3 + ["alpacaeval-easy"] * 2
    chosen = [1.0] + [0.0] * 6 + [1.0, 0.0]
    report = rewardbench_report(chosen, [0.5] * 9, subsets)
    assert report.sections == {"Chat": 0.5, "Reasoning": 0.5}
    assert report.score == 0.5
    assert report.overall.accuracy == pytest.approx(2 / 9)


def test_calibration_of_a_calibrated_and_a_boastful_judge() -> None:
    generator = np.random.default_rng(0)
    chance = generator.random(20_000)
    outcome = (generator.random(20_000) < chance).astype(float)
    honest = calibration(chance, outcome)
    assert honest.ece < 0.02
    assert honest.brier == pytest.approx(1 / 6, abs=0.01)
    assert honest.auroc == pytest.approx(5 / 6, abs=0.01)
    boastful = calibration(np.where(chance > 0.5, 0.999, 0.001), outcome)
    assert boastful.ece > 0.2
    assert sum(boastful.counts) == 20_000


def test_auroc_counts_pairs_and_missing_values_are_left_out() -> None:
    found = calibration([0.1, 0.5, 0.5, 0.9, NAN, 0.3], [0, 0, 1, 1, 1, NAN], num_bins=2)
    pairs = [(1, 0.5, 0.1), (0.5, 0.5, 0.5), (1, 0.9, 0.1), (1, 0.9, 0.5)]
    assert found.auroc == pytest.approx(sum(points for points, *_ in pairs) / 4)
    assert found.num_missing == 2
    assert math.isnan(calibration([0.5], [1]).auroc)
    assert math.isnan(calibration([], []).ece)
    with pytest.raises(ValueError, match="squash logits"):
        calibration([1.5], [1])
