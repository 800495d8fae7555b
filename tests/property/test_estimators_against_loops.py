"""Estimators, weights and scalarisations against plain loops over Python floats, to 1e-8.

The loops are written from the papers' equations, one number at a time; gradients are the
derivatives of these equations by hand.
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewardsvc.policy_client.algorithms.advantages import (
    against_baseline,
    group_centred_batch_scaled,
    leave_one_out_normalised,
    moving_baseline,
)
from rewardsvc.policy_client.algorithms.importance import (
    IsCorrection,
    IsMode,
    mismatch_ratio,
    mismatch_weights,
)
from rewardsvc.policy_client.algorithms.kl import KlClamps, KlEstimator, kl_estimate
from rewardsvc.policy_client.algorithms.masking import Whitening, masked_whiten
from rewardsvc.policy_client.algorithms.normalise import (
    RewardNorm,
    RunningMoments,
    normalised_rewards,
)
from rewardsvc.policy_client.algorithms.policy_loss import (
    ClipRange,
    Objective,
    RatioLevel,
    importance_ratio,
    policy_loss,
)
from rewardsvc.policy_client.algorithms.process_rewards import place_steps, step_group_normalised
from rewardsvc.policy_client.algorithms.scalarise import (
    AUGMENTATION,
    Constraint,
    chebyshev,
    lagrangian,
    weighted_sum_of_rewards,
)
from rewardsvc.policy_client.algorithms.shaping import informative_groups, soft_overlong_penalty
from rewardsvc.policy_client.algorithms.value_loss import clipped_value_loss

NAN = math.nan
EXACT = {"rtol": 1e-8, "atol": 1e-8}

REWARD = st.one_of(st.just(NAN), st.sampled_from([0.0, 1.0, 0.1]), st.floats(-50, 50))
GROUPS = st.integers(1, 5).flatmap(
    lambda size: st.lists(st.lists(REWARD, min_size=size, max_size=size), min_size=1, max_size=4)
)


def finite(numbers: list[float]) -> list[float]:
    return [number for number in numbers if math.isfinite(number)]


def deviation(numbers: list[float]) -> float:
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(rewards=GROUPS)
def test_leave_one_out_over_the_groups_deviation(rewards: list[list[float]]) -> None:
    expected = []
    for group in rewards:
        present = finite(group)
        row = []
        for position, reward in enumerate(group):
            others = finite([r for j, r in enumerate(group) if j != position])
            if not math.isfinite(reward) or not others or len(set(present)) == 1:
                row.append(0.0)
            else:
                baseline = sum(others) / len(others)
                row.append((reward - baseline) / (deviation(present) + 1e-4))
        expected.append(row)
    torch.testing.assert_close(
        leave_one_out_normalised(tensor(rewards)).values, tensor(expected), **EXACT
    )


@settings(deadline=None, max_examples=40)
@given(rewards=GROUPS)
def test_group_centre_over_the_batchs_deviation(rewards: list[list[float]]) -> None:
    scale = deviation(finite([r for group in rewards for r in group])) + 1e-4
    expected = []
    for group in rewards:
        present = finite(group)
        flat = len(present) < 2 or len(set(present)) == 1
        mean = sum(present) / len(present) if present else 0.0
        expected.append(
            [0.0 if flat or not math.isfinite(r) else (r - mean) / scale for r in group]
        )
    torch.testing.assert_close(
        group_centred_batch_scaled(tensor(rewards)).values, tensor(expected), **EXACT
    )


@settings(deadline=None, max_examples=40)
@given(batches=st.lists(GROUPS, min_size=1, max_size=4), decay=st.floats(0, 0.99))
def test_the_moving_baseline_never_contains_the_batch_it_is_compared_with(
    batches: list[list[list[float]]], decay: float
) -> None:
    baseline: float | None = None
    expected: float | None = None
    for batch in batches:
        rewards = tensor(batch)
        if baseline is not None:
            result = against_baseline(rewards, baseline)
            assert result.valid.tolist() == rewards.isfinite().tolist()
            wanted = [[r - expected if math.isfinite(r) else 0.0 for r in row] for row in batch]
            torch.testing.assert_close(result.values, tensor(wanted), **EXACT)
        baseline = moving_baseline(baseline, rewards, decay=decay)
        present = finite([r for row in batch for r in row])
        if present:
            mean = sum(present) / len(present)
            expected = mean if expected is None else decay * expected + (1 - decay) * mean
        if expected is None:
            assert baseline is None
        else:
            assert baseline == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    cells=st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=12),
    whitening=st.sampled_from([Whitening.BESSEL, Whitening.POPULATION]),
)
def test_whitening_by_either_convention(
    cells: list[tuple[float, bool]], whitening: Whitening
) -> None:
    kept = [value for value, used in cells if used]
    mean = sum(kept) / len(kept) if kept else 0.0
    squares = sum((v - mean) ** 2 for v in kept)
    if whitening is Whitening.BESSEL:
        scale = math.sqrt((squares / (len(kept) - 1) if len(kept) > 1 else 0.0) + 1e-8)
    else:
        scale = math.sqrt(max(squares / max(len(kept), 1), 1e-8))
    x = tensor([[value if used else NAN for value, used in cells]])
    mask = torch.tensor([[used for _, used in cells]])
    expected = tensor([[(v - mean) / scale if used else 0.0 for v, used in cells]])
    found = masked_whiten(x, mask, whitening=whitening)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@st.composite
def stepped_groups(draw: st.DrawFn) -> tuple[list[list[tuple[int, float]] | None], list[int]]:
    """For four completions in groups of two: steps as (end, reward), or None; and lengths."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=4, max_size=4))
    steps: list[list[tuple[int, float]] | None] = []
    for length in lengths:
        ends = sorted(draw(st.sets(st.integers(0, length - 1), min_size=1)))
        row = [(end, draw(st.sampled_from([0.0, 1.0, 0.25, -2.0]))) for end in ends]
        steps.append(draw(st.sampled_from([row, row, row, None])))
    return steps, lengths


@settings(deadline=None, max_examples=40)
@given(case=stepped_groups())
def test_process_supervision_normalises_over_all_steps_of_a_group(
    case: tuple[list[list[tuple[int, float]] | None], list[int]],
) -> None:
    steps, lengths = case
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    rewards, is_step = place_steps(
        [None if row is None else [r for _, r in row] for row in steps],
        [[] if row is None else [end for end, _ in row] for row in steps],
        mask,
        dtype=torch.float64,
    )
    found, valid = step_group_normalised(rewards, is_step, mask, num_generations=2, eps=1e-4)
    for start in (0, 2):
        group = steps[start : start + 2]
        everything = [r for row in group if row is not None for _, r in row]
        mean = sum(everything) / len(everything) if everything else 0.0
        scale = deviation(everything) + 1e-4
        for offset, row in enumerate(group):
            number = start + offset
            assert bool(valid[number]) == (row is not None and len(everything) >= 2)
            for t in range(6):
                wanted = 0.0
                if row is not None and t < lengths[number] and len(set(everything)) > 1:
                    wanted = sum((r - mean) / scale for end, r in row if end >= t)
                assert found[number, t].item() == pytest.approx(wanted, abs=1e-8)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 40), min_size=1), limit=st.integers(1, 40), data=st.data())
def test_soft_overlong_is_the_papers_three_cases(
    lengths: list[int], limit: int, data: st.DataObject
) -> None:
    cache = data.draw(st.integers(1, limit))
    found = soft_overlong_penalty(
        torch.tensor(lengths, dtype=torch.float64), max_length=limit, cache_length=cache
    )
    for n, penalty in zip(lengths, found.tolist(), strict=True):
        if n <= limit - cache:
            assert penalty == 0
        elif n <= limit:
            assert penalty == pytest.approx(((limit - cache) - n) / cache, abs=1e-12)
        else:
            assert penalty == -1


@settings(deadline=None, max_examples=40)
@given(rewards=GROUPS)
def test_informative_groups_have_two_different_rewards(rewards: list[list[float]]) -> None:
    found = informative_groups(tensor(rewards)).tolist()
    assert found == [len(set(finite(group))) > 1 for group in rewards]


@settings(deadline=None, max_examples=40)
@given(batches=st.lists(st.lists(REWARD, max_size=6), max_size=5))
def test_running_moments_are_those_of_all_numbers_at_once(batches: list[list[float]]) -> None:
    moments = RunningMoments()
    for batch in batches:
        moments = moments.updated(torch.tensor(batch, dtype=torch.float64))
    everything = finite([r for batch in batches for r in batch])
    assert moments.count == len(everything)
    if everything:
        assert moments.mean == pytest.approx(statistics.fmean(everything), abs=1e-9)
    assert moments.std == pytest.approx(deviation(everything), abs=1e-8)


@settings(deadline=None, max_examples=40)
@given(rewards=GROUPS, norm=st.sampled_from(list(RewardNorm)))
def test_normalised_rewards(rewards: list[list[float]], norm: RewardNorm) -> None:
    everything = finite([r for group in rewards for r in group])
    moments = RunningMoments().updated(tensor(rewards))
    found = normalised_rewards(tensor(rewards), norm, moments)
    for group, row in zip(rewards, found.tolist(), strict=True):
        pool = finite(group) if norm is RewardNorm.GROUP else everything
        mean, scale = (sum(pool) / len(pool) if pool else 0.0), deviation(pool) + 1e-4
        for reward, value in zip(group, row, strict=True):
            if not math.isfinite(reward):
                assert math.isnan(value)
                continue
            wanted = reward
            if norm in (RewardNorm.GROUP, RewardNorm.BATCH):
                wanted = (reward - mean) / scale
            elif norm is RewardNorm.RUNNING and len(everything) > 1:
                wanted = reward / scale
            assert value == pytest.approx(wanted, rel=1e-8, abs=1e-8)


OBJECTIVES = st.lists(st.lists(REWARD, min_size=3, max_size=3), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(completions=OBJECTIVES, skip=st.booleans())
def test_weighted_and_chebyshev_and_lagrangian(completions: list[list[float]], skip: bool) -> None:
    weights, ideals, multipliers = [0.5, 2.0, 1.0], [1.0, 0.0, 3.0], [0.0, 0.7, 2.0]
    columns = tensor([list(column) for column in zip(*completions, strict=True)])
    w, z, lam = (torch.tensor(x, dtype=torch.float64) for x in (weights, ideals, multipliers))
    total = weighted_sum_of_rewards(columns, w, skip_missing=skip).tolist()
    worst = chebyshev(columns, w, z).tolist()
    base = torch.ones(len(completions), dtype=torch.float64)
    held = lagrangian(base, columns, lam).tolist()
    for number, row in enumerate(completions):
        known = [(k, r) for k, r in enumerate(row) if math.isfinite(r)]
        weighted = sum(weights[k] * r for k, r in known)
        if len(known) == 3 or (skip and known):
            assert total[number] == pytest.approx(weighted, abs=1e-8)
        else:
            assert math.isnan(total[number])
        if len(known) == 3:
            short = max(weights[k] * max(ideals[k] - r, 0.0) for k, r in known)
            assert worst[number] == pytest.approx(AUGMENTATION * weighted - short, abs=1e-8)
        else:
            assert math.isnan(worst[number])
        if all(math.isfinite(r) for r in row[1:]):  # the first multiplier is 0
            cost = 0.7 * row[1] + 2.0 * row[2]
            assert held[number] == pytest.approx((1 - cost) / 3.7, abs=1e-8)
        else:
            assert math.isnan(held[number])


@settings(deadline=None, max_examples=40)
@given(
    start=st.floats(0, 5), values=st.lists(REWARD, min_size=1, max_size=5), at_least=st.booleans()
)
def test_a_multiplier_moves_by_the_mean_violation(
    start: float, values: list[float], at_least: bool
) -> None:
    constraint = Constraint(limit=0.4, at_least=at_least, learning_rate=0.1, max_multiplier=4.0)
    found = constraint.updated(start, torch.tensor(values, dtype=torch.float64))
    present = finite(values)
    wanted = start
    if present:
        excess = sum(v - 0.4 for v in present) / len(present)
        wanted = min(max(start + 0.1 * (-excess if at_least else excess), 0.0), 4.0)
    assert found == pytest.approx(wanted, abs=1e-9)


LOGPROBS = st.lists(
    st.tuples(st.floats(-5, -0.01), st.floats(-5, -0.01), st.floats(-3, 3)), min_size=1, max_size=6
)


def columns(cells: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One row with a masked token of NaN in front."""
    parts = [tensor([[NAN, *column]]) for column in zip(*cells, strict=True)]
    mask = torch.tensor([[False] + [True] * len(cells)])
    return parts[0].requires_grad_(), parts[1], parts[2], mask


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("level", list(RatioLevel))
@settings(deadline=None, max_examples=40)
@given(cells=LOGPROBS, dual=st.sampled_from([None, 1.7]))
def test_the_gradient_is_the_derivative_by_hand(
    objective: Objective,
    level: RatioLevel,
    cells: list[tuple[float, float, float]],
    dual: float | None,
) -> None:
    clip = ClipRange(eps_low=0.3, eps_high=0.4, dual=dual)
    now, old, advantages, mask = columns(cells)
    ratio = importance_ratio(now, old, mask, level)
    policy_loss(now, ratio, advantages, mask, objective=objective, clip=clip).loss.sum().backward()

    deltas = [p - q for p, q, _ in cells]
    count = len(cells)
    total = sum(deltas) if level is RatioLevel.SEQUENCE else sum(deltas) / count
    total = min(max(total, -20.0), 20.0)
    ratios = [math.exp(d) if level is RatioLevel.TOKEN else math.exp(total) for d in deltas]
    wanted = [0.0] * count
    for t, (r, (_, _, a)) in enumerate(zip(ratios, cells, strict=True)):
        if objective is Objective.CISPO:
            wanted[t] -= min(max(r, 0.7), 1.4) * a
            continue
        slope = -r * a  # d loss_t / d log r_t
        if objective is Objective.CLIP:
            bound_high, bound_low = a > 0 and r > 1.4, a < 0 and r < 0.7
            bound_dual = dual is not None and a < 0 and r > dual
            if any(abs(r - edge) < 1e-7 for edge in (0.7, 1.4, 1.7)):
                return  # on a corner there is no derivative
            slope = 0.0 if bound_high or bound_low or bound_dual else slope
        if level is RatioLevel.SEQUENCE:
            wanted = [w + slope * (abs(sum(deltas)) <= 20) for w in wanted]
        elif level is RatioLevel.SEQUENCE_MEAN:
            wanted = [w + slope / count for w in wanted]
        else:
            wanted[t] += slope
    assert now.grad is not None
    torch.testing.assert_close(now.grad, tensor([[0.0, *wanted]]), **EXACT)


@pytest.mark.parametrize("estimator", list(KlEstimator))
@pytest.mark.parametrize("clamps", list(KlClamps))
@settings(deadline=None, max_examples=40)
@given(cells=LOGPROBS, scale=st.sampled_from([1.0, 12.0]))
def test_kl_and_its_gradient_by_whose_clamps(
    estimator: KlEstimator,
    clamps: KlClamps,
    cells: list[tuple[float, float, float]],
    scale: float,
) -> None:
    cells = [(p * scale, q * scale, a) for p, q, a in cells]
    now, ref, _, mask = columns(cells)
    found = kl_estimate(now, ref, mask, estimator, clamps=clamps)
    found.sum().backward()
    values, slopes = [], []
    for p, q, _ in cells:
        d = q - p
        if estimator is KlEstimator.K1:
            value, slope = -d, 1.0
        elif estimator is KlEstimator.K2:
            value, slope = d * d / 2, -d
        else:
            inside = abs(d) <= 20 or clamps is not KlClamps.VERL
            d = d if inside else math.copysign(20.0, d)
            value = math.exp(d) - d - 1
            slope = 1 - math.exp(d) if inside else 0.0
        limited = clamps is KlClamps.OPENRLHF or (
            clamps is KlClamps.VERL and estimator is KlEstimator.K3
        )
        if limited and abs(value) > 10:
            value, slope = math.copysign(10.0, value), 0.0
        values.append(value)
        slopes.append(slope)
    assert now.grad is not None
    torch.testing.assert_close(found.detach(), tensor([[0.0, *values]]), **EXACT)
    torch.testing.assert_close(now.grad, tensor([[0.0, *slopes]]), **EXACT)


@settings(deadline=None, max_examples=40)
@given(cells=LOGPROBS, clip=st.sampled_from([None, 0.2]))
def test_the_value_losss_gradient(
    cells: list[tuple[float, float, float]], clip: float | None
) -> None:
    values, old, returns, mask = columns(cells)
    clipped_value_loss(values, old, returns, mask, clip=clip)[0].sum().backward()
    wanted = []
    for v, o, r in cells:
        bounded = v if clip is None else min(max(v, o - clip), o + clip)
        if abs((bounded - r) ** 2 - (v - r) ** 2) < 1e-12 and bounded != v:
            return  # equal: no one derivative
        cut = clip is not None and (bounded - r) ** 2 > (v - r) ** 2
        wanted.append(0.0 if cut else v - r)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, tensor([[0.0, *wanted]]), **EXACT)


@pytest.mark.parametrize("mode", list(IsMode))
@settings(deadline=None, max_examples=40)
@given(cells=LOGPROBS)
def test_mismatch_ratios_are_measured_before_and_bounded_after(
    mode: IsMode, cells: list[tuple[float, float, float]]
) -> None:
    trainer, sampler, _, mask = columns(cells)
    ratio = mismatch_ratio(trainer, sampler, mask, mode)
    weights = mismatch_weights(ratio, IsCorrection(mode=mode, low=0.5, high=1.5))
    assert not ratio.requires_grad
    deltas = [p - q for p, q, _ in cells]
    for t, delta in enumerate(deltas, start=1):
        raw = math.exp(sum(deltas) if mode.startswith("sequence") else delta)
        assert ratio[0, t].item() == pytest.approx(min(max(raw, math.exp(-20)), math.exp(20)))
        raw = ratio[0, t].item()
        wanted = 1.0
        if mode.endswith("truncate"):
            wanted = min(max(raw, 0.5), 1.5)
        elif mode.endswith("mask"):
            wanted = raw if 0.5 <= raw <= 1.5 else 0.0
        assert weights[0, t].item() == pytest.approx(wanted, abs=1e-12)
