"""What the algorithms' pieces promise beyond equalling a loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rewardsvc.policy_client.algorithms.advantages import leave_one_out_normalised
from rewardsvc.policy_client.algorithms.aggregation import Aggregation, token_weights
from rewardsvc.policy_client.algorithms.kl import KlEstimator, kl_estimate
from rewardsvc.policy_client.algorithms.kl_control import DoublingRule, KlController
from rewardsvc.policy_client.algorithms.policy_loss import (
    ClipRange,
    RatioLevel,
    clipped_policy_loss,
    importance_ratio,
)
from rewardsvc.policy_client.algorithms.presets import (
    PRESETS,
    AdvantageEstimator,
    AlgorithmSpec,
    KlPlace,
)
from rewardsvc.policy_client.algorithms.value_loss import explained_variance
from rewardsvc.policy_client.train.online.judge import Outcome, judge

NAN = math.nan
ALL = torch.ones(1, 1, dtype=torch.bool)


def test_k3_is_clamped_where_the_ratio_explodes() -> None:
    far = kl_estimate(torch.tensor([[-300.0]]), torch.tensor([[0.0]]), ALL, KlEstimator.K3)
    assert far.item() == 10.0
    near = kl_estimate(torch.tensor([[0.0]]), torch.tensor([[-5.0]]), ALL, KlEstimator.K3)
    assert near.item() == pytest.approx(math.exp(-5) + 5 - 1)


def test_k3_keeps_its_precision_near_zero() -> None:
    # exp(d) - d - 1 in float32 is 0 or noise here; the true value is d^2 / 2.
    d = torch.tensor([[1e-4]])
    estimate = kl_estimate(torch.zeros(1, 1), d, ALL, KlEstimator.K3).item()
    assert 0 <= estimate < 1e-7


@pytest.mark.parametrize(
    ("kl", "factor"), [(1.0, 1.0), (1.1, 1.01), (0.95, 0.995), (100.0, 1.02), (0.0, 0.98)]
)
def test_adaptive_coefficient_moves_by_the_clipped_error(kl: float, factor: float) -> None:
    control = KlController(target=1.0, horizon=1000)
    assert control.updated(0.5, kl=kl, num_samples=100) == pytest.approx(0.5 * factor)


@pytest.mark.parametrize(("kl", "factor"), [(0.16, 2.0), (0.06, 0.5), (0.14, 1.0), (0.07, 1.0)])
def test_the_doubling_rule_leaves_a_band_alone(kl: float, factor: float) -> None:
    assert DoublingRule(target=0.1).updated(0.3, kl=kl) == 0.3 * factor


@pytest.mark.parametrize("value", [0.35, 1.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_success_among_failures_has_no_huge_advantage(value: float, dtype: Any) -> None:
    # The others are all equal: their deviation is 0, or rounding, and must not divide.
    rewards = torch.full((1, 8), value, dtype=dtype)
    rewards[0, 3] += 0.6
    values = leave_one_out_normalised(rewards, eps=1e-9).values
    assert values.abs().max() <= 8**0.5 + 1e-5
    assert values[0, 3].item() == pytest.approx(8**0.5, rel=1e-5)


def test_padding_never_leaks_into_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5]])

    def advantages(width: int, junk: float) -> torch.Tensor:
        mask = torch.arange(width)[None] < torch.tensor([[3], [1], [2]])
        outcome = Outcome(
            rewards=rewards,
            usable=torch.ones(3, dtype=torch.bool),
            completion_mask=mask,
            kl=torch.where(mask, 0.1, junk),
            values=torch.where(mask, 0.2, junk),
        )
        found = []
        for name in ("ppo", "reinforce_pp", "reinforce_pp_baseline", "grpo", "rloo"):
            found.append(judge(outcome, PRESETS[name], kl_coef=0.3).advantages[:, :3])
        return torch.stack(found)

    # Not bit for bit: a sum over another width is added up in another order.
    torch.testing.assert_close(advantages(9, 0.0), advantages(3, 0.0), rtol=1e-5, atol=1e-6)
    assert advantages(9, math.nan).equal(advantages(9, 0.0))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("group", [[0.3, 0.3, 0.3, 0.3], [1.0, NAN, 0.0, 0.5], [NAN] * 4])
def test_equal_one_missing_and_all_missing_have_an_answer(name: str, group: list[float]) -> None:
    rewards, mask = torch.tensor([group]), torch.ones(4, 2, dtype=torch.bool)
    steps = torch.where(rewards.isfinite().view(4, 1), rewards.view(4, 1), 0.0)
    outcome = Outcome(
        rewards=rewards,
        usable=torch.ones(4, dtype=torch.bool),
        completion_mask=mask,
        values=torch.zeros(4, 2),
        step_rewards=torch.cat([torch.zeros(4, 1), steps], 1),
        is_step=torch.tensor([[False, True]]) & rewards.isfinite().view(4, 1),
    )
    judged = judge(outcome, PRESETS[name], kl_coef=0.0, baseline=0.3)
    present = rewards.isfinite().flatten()
    assert judged.mask.all(1).tolist() == present.tolist()
    assert judged.advantages.isfinite().all()
    assert (judged.advantages[~present] == 0).all()
    if len(set(group)) == 1 and PRESETS[name].advantage.needs_group:
        assert (judged.advantages == 0).all()


def test_without_a_target_the_coefficient_stays() -> None:
    assert KlController().updated(0.05, kl=1e9, num_samples=1000) == 0.05


@pytest.mark.parametrize("fields", [{"target": 0.0}, {"target": -1.0}, {"horizon": 0}])
def test_a_controller_refuses_what_makes_no_sense(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        KlController(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [{"eps_low": 1.5}, {"eps_low": -0.1}, {"eps_high": -0.1}, {"dual": 1.0}]
)
def test_a_clip_range_refuses_what_makes_no_sense(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        ClipRange(**fields)


def test_clipping_cuts_the_gradient_only_on_the_side_that_the_advantage_pushes_to() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    logprobs = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5]])).requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    ratio = importance_ratio(logprobs, torch.zeros(1, 4), mask, RatioLevel.TOKEN)
    policy = clipped_policy_loss(ratio, advantages, mask, ClipRange())
    policy.loss.sum().backward()
    assert logprobs.grad is not None
    assert (logprobs.grad != 0).tolist() == [[False, True, True, False]]
    assert policy.clipped_high.tolist() == [[True, False, False, False]]
    assert policy.clipped_low.tolist() == [[False, False, False, True]]


def test_dual_clip_bounds_the_loss_of_a_huge_ratio() -> None:
    mask, ratio = ALL, torch.tensor([[50.0]])
    advantage = torch.tensor([[-1.0]])
    assert clipped_policy_loss(ratio, advantage, mask, ClipRange()).loss.item() == 50.0
    assert clipped_policy_loss(ratio, advantage, mask, ClipRange(dual=3.0)).loss.item() == 3.0


def test_the_ratio_to_itself_is_exactly_one_at_every_level() -> None:
    logprobs = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) - 3
    mask = torch.ones(3, 5, dtype=torch.bool)
    for level in RatioLevel:
        assert (importance_ratio(logprobs, logprobs, mask, level) == 1).all()


def test_an_extreme_ratio_stays_finite() -> None:
    ratio = importance_ratio(torch.zeros(1, 1), torch.tensor([[-1e4]]), ALL, RatioLevel.TOKEN)
    assert ratio.isfinite().all()


def test_empty_completions_have_no_weight_and_take_none_from_others() -> None:
    mask = torch.tensor([[True, True], [False, False]])

    def weights(rows: slice, mode: Aggregation) -> list[list[float]]:
        groups = torch.tensor([3, 7])[rows]
        return token_weights(
            mask[rows], mode, norm_length=2, groups_N=groups, dtype=torch.float32
        ).tolist()

    for mode in Aggregation:
        assert weights(slice(0, 2), mode) == [*weights(slice(0, 1), mode), [0.0, 0.0]]
        assert weights(slice(1, 2), mode) == [[0.0, 0.0]]


def test_a_constant_norm_needs_a_length() -> None:
    with pytest.raises(ValueError, match="norm_length"):
        token_weights(ALL, Aggregation.SEQ_MEAN_TOKEN_SUM_NORM, dtype=torch.float32)


def test_explained_variance_is_one_if_perfect_and_undefined_if_returns_are_constant() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, math.nan]])
    mask = torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.zeros(1, 4), returns, mask) == 0.0
    assert math.isnan(explained_variance(returns, torch.ones(1, 4), mask))


def test_the_table_has_the_algorithms_and_each_names_its_source() -> None:
    assert {"ppo", "grpo", "rloo"} <= set(PRESETS)
    assert all("arXiv" in row.source for row in PRESETS.values())
    assert PRESETS["ppo"].advantage.needs_critic
    assert PRESETS["rloo"].kl_place is KlPlace.REWARD
    assert not PRESETS["grpo"].advantage.needs_critic


def test_a_group_estimator_refuses_groups_of_one() -> None:
    with pytest.raises(ValueError, match="num_generations"):
        AlgorithmSpec(
            advantage=AdvantageEstimator.LEAVE_ONE_OUT,
            kl_place=KlPlace.REWARD,
            kl_estimator=KlEstimator.K1,
            kl_coef=0.0,
            num_generations=1,
            source="",
        )
