"""Policy, value and KL terms against plain loops in float64; masked NaN never leaks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewardsvc.policy_client.algorithms.aggregation import (
    Aggregation,
    token_weights,
    weighted_sum,
)
from rewardsvc.policy_client.algorithms.kl import KlEstimator, kl_estimate
from rewardsvc.policy_client.algorithms.policy_loss import (
    ClipRange,
    RatioLevel,
    clipped_policy_loss,
    importance_ratio,
)
from rewardsvc.policy_client.algorithms.value_loss import clipped_value_loss

NORM_LENGTH = 7
LOGPROB = st.floats(-5, 0)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-probs, old log-probs, advantages, mask): right-padded, lengths from 0, NaN padding."""
    width = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(0, width), min_size=1, max_size=4))
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]

    def column(numbers: st.SearchStrategy[float]) -> Tensor:
        count = len(lengths) * width
        flat = draw(st.lists(numbers, min_size=count, max_size=count))
        x = torch.tensor(flat, dtype=torch.float64).view(len(lengths), width)
        return torch.where(mask, x, math.nan)

    return column(LOGPROB), column(LOGPROB), column(st.floats(-3, 3)), mask


def loop_ratio(delta: list[float], level: RatioLevel) -> list[float]:
    if level is RatioLevel.TOKEN:
        return [math.exp(d) for d in delta]
    total = sum(delta)
    if level is not RatioLevel.SEQUENCE:
        total /= max(len(delta), 1)
    return [math.exp(min(max(total, -20), 20))] * len(delta)


def loop_token_loss(ratio: float, advantage: float, clip: ClipRange) -> float:
    bounded = min(max(ratio, 1 - clip.eps_low), 1 + clip.eps_high)
    gain = min(ratio * advantage, bounded * advantage)
    if clip.dual is not None and advantage < 0:
        gain = max(gain, clip.dual * advantage)
    return -gain


def loop_aggregate(losses: list[list[float]], mode: Aggregation) -> float:
    rows = [row for row in losses if row]
    if not rows:
        return 0.0
    if mode is Aggregation.TOKEN_MEAN:
        return sum(map(sum, rows)) / sum(map(len, rows))
    if mode is Aggregation.SEQ_MEAN_TOKEN_MEAN:
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    if mode is Aggregation.GROUP_MEAN_TOKEN_MEAN:
        pairs = [losses[at : at + 2] for at in range(0, len(losses), 2)]
        groups = [[loss for row in pair for loss in row] for pair in pairs]
        groups = [group for group in groups if group]
        return sum(sum(group) / len(group) for group in groups) / len(groups)
    divisor = NORM_LENGTH if mode is Aggregation.SEQ_MEAN_TOKEN_SUM_NORM else 1
    return sum(sum(row) / divisor for row in rows) / len(rows)


@pytest.mark.parametrize("mode", list(Aggregation))
@pytest.mark.parametrize("level", list(RatioLevel))
@settings(deadline=None)
@given(
    batch=batches(),
    low=st.floats(0, 1),
    high=st.floats(0, 2),
    dual=st.one_of(st.none(), st.floats(1.01, 4)),
)
def test_policy_loss_and_gradient_equal_the_loop(
    mode: Aggregation,
    level: RatioLevel,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    low: float,
    high: float,
    dual: float | None,
) -> None:
    logprobs, old, advantages, mask = batch
    clip = ClipRange(eps_low=low, eps_high=high, dual=dual)
    logprobs.requires_grad_()
    ratio = importance_ratio(logprobs, old, mask, level)
    policy = clipped_policy_loss(ratio, advantages, mask, clip)
    weights = token_weights(
        mask,
        mode,
        norm_length=NORM_LENGTH,
        groups_N=torch.arange(len(mask)) // 2,
        dtype=torch.float64,
    )
    loss = weighted_sum(policy.loss, weights)
    loss.backward()

    losses = []
    for now, before, gain, kept in zip(logprobs, old, advantages, mask, strict=True):
        delta = (now - before)[kept].tolist()
        ratios = loop_ratio(delta, level)
        losses.append(
            [loop_token_loss(r, a, clip) for r, a in zip(ratios, gain[kept].tolist(), strict=True)]
        )
    assert loss.item() == pytest.approx(loop_aggregate(losses, mode), rel=1e-9, abs=1e-9)
    assert logprobs.grad is not None
    assert (logprobs.grad[~mask] == 0).all()
    assert logprobs.grad.isfinite().all()
    assert (policy.ratio[~mask] == 1).all()
    assert not policy.clipped_low[~mask].any()
    assert not policy.clipped_high[~mask].any()


@pytest.mark.parametrize("mode", list(Aggregation))
@settings(deadline=None)
@given(batch=batches(), cuts=st.lists(st.integers(0, 4), max_size=3))
def test_micro_batches_add_up_to_the_minibatch(
    mode: Aggregation, batch: tuple[Tensor, Tensor, Tensor, Tensor], cuts: list[int]
) -> None:
    loss, _, _, mask = batch
    weights = token_weights(
        mask,
        mode,
        norm_length=NORM_LENGTH,
        groups_N=torch.arange(len(mask)) // 2,
        dtype=torch.float64,
    )
    edges = sorted({0, len(mask), *(min(cut, len(mask)) for cut in cuts)})
    parts = [weighted_sum(loss[a:b], weights[a:b]).item() for a, b in pairwise(edges)]
    assert sum(parts) == pytest.approx(weighted_sum(loss, weights).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("estimator", list(KlEstimator))
@settings(deadline=None)
@given(batch=batches())
def test_kl_estimates_equal_the_loop(
    estimator: KlEstimator, batch: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    logprobs, reference, _, mask = batch
    logprobs.requires_grad_()
    estimate = kl_estimate(logprobs, reference, mask, estimator)
    estimate.sum().backward()

    def loop(now: float, ref: float) -> float:
        d = ref - now
        if estimator is KlEstimator.K1:
            return -d
        return d * d / 2 if estimator is KlEstimator.K2 else min(math.exp(d) - d - 1, 10.0)

    expected = torch.zeros_like(estimate)
    for row, column in mask.nonzero().tolist():
        expected[row, column] = loop(logprobs[row, column].item(), reference[row, column].item())
    torch.testing.assert_close(estimate, expected, rtol=1e-9, atol=1e-9)
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert (logprobs.grad[~mask] == 0).all()


@pytest.mark.parametrize("clip", [None, 0.2])
@settings(deadline=None)
@given(batch=batches())
def test_value_loss_equals_the_loop(
    clip: float | None, batch: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    values, old, returns, mask = batch
    values.requires_grad_()
    loss, clipped = clipped_value_loss(values, old, returns, mask, clip=clip)
    loss.sum().backward()
    for row, column in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
        if not mask[row, column]:
            assert loss[row, column] == 0
            assert not clipped[row, column]
            continue
        v, o, r = (x[row, column].item() for x in (values, old, returns))
        plain = (v - r) ** 2
        bounded = plain if clip is None else (min(max(v, o - clip), o + clip) - r) ** 2
        assert loss[row, column].item() == pytest.approx(max(plain, bounded) / 2, abs=1e-12)
        assert bool(clipped[row, column]) == (bounded > plain)
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert (values.grad[~mask] == 0).all()
