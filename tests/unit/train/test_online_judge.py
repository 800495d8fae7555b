"""From rewards to advantages: the penalty's place, missing rewards, and who may be learned from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rewardsvc.policy_client.algorithms.presets import PRESETS
from rewardsvc.policy_client.train.online.judge import Judged, Outcome, judge

NAN = math.nan
KL_COEF = 0.1
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])


def judged(algorithm: str, rewards: list[float], **fields: object) -> Judged:
    outcome = Outcome(
        rewards=torch.tensor([rewards]),
        usable=torch.ones(3, dtype=torch.bool),
        completion_mask=MASK,
    )
    spec = replace(PRESETS[algorithm], lam=1.0)
    return judge(replace(outcome, **fields), spec, kl_coef=KL_COEF)


def test_group_advantages_are_the_same_at_every_token_of_a_completion() -> None:
    result = judged("rloo", [1.0, 0.0, 0.5])
    assert result.advantages.tolist() == [[0.75, 0.75, 0.75], [-0.75, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert result.mask.equal(MASK)


def test_a_penalty_in_the_reward_counts_a_whole_completion() -> None:
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, NAN, NAN], [0.0, 0.0, NAN]])
    result = judged("rloo", [1.0, 0.0, 0.5], kl=kl)
    expected = judged("rloo", [1.0 - 0.6, 0.0 - 0.4, 0.5])
    torch.testing.assert_close(result.advantages, expected.advantages)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "dr_grpo", "ppo", "reinforce_pp"])
def test_a_completion_without_a_reward_is_not_learned_from(algorithm: str) -> None:
    values = torch.tensor([[0.1, 0.2, 0.3], [0.4, NAN, NAN], [0.5, 0.6, NAN]])
    result = judged(algorithm, [1.0, NAN, 0.0], values=values)
    assert result.mask.any(1).tolist() == [True, False, True]
    assert result.advantages.isfinite().all()
    assert (result.advantages[~result.mask] == 0).all()
    without = judged(algorithm, [1.0, NAN, 0.0], values=values.nan_to_num(9.0))
    assert without.advantages.equal(result.advantages)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce_pp"])
def test_no_rewards_at_all_leave_nothing_to_learn_from(algorithm: str) -> None:
    result = judged(algorithm, [NAN, NAN, NAN], values=torch.zeros(3, 3))
    assert not result.mask.any()
    assert (result.advantages == 0).all()


def test_an_unusable_completion_still_informs_the_baseline() -> None:
    usable = torch.tensor([True, True, False])
    result = judged("rloo", [1.0, 0.0, 0.5], usable=usable)
    assert result.advantages[0, 0] == 0.75
    assert result.mask.any(1).tolist() == [True, True, False]


def test_token_penalties_lower_the_returns_before_them() -> None:
    kl = torch.tensor([[0.0, 10.0, 0.0], [0.0, NAN, NAN], [0.0, 0.0, NAN]])
    result = judged("ppo", [1.0, 0.0, 0.5], kl=kl, values=torch.zeros(3, 3))
    assert result.returns is not None
    torch.testing.assert_close(
        result.returns, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    )


def test_token_advantages_are_whitened_over_what_is_learned_from() -> None:
    result = judged("reinforce_pp", [1.0, 0.0, NAN])
    kept = result.advantages[result.mask]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert kept.std().item() == pytest.approx(1.0, abs=1e-5)


def test_gae_needs_values() -> None:
    with pytest.raises(ValueError, match="values"):
        judged("ppo", [1.0, 0.0, 0.5])
