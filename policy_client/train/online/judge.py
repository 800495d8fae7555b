"""From rewards to advantages. Here the advantage columns of a spec are applied.

Legend: P prompts, G completions of each, N = P G completions, T tokens of the longest one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.advantages import (
    GroupAdvantages,
    against_baseline,
    group_centred_batch_scaled,
    group_normalised,
    leave_one_out,
    leave_one_out_normalised,
)
from rewardsvc.policy_client.algorithms.masking import masked_whiten
from rewardsvc.policy_client.algorithms.process_rewards import step_group_normalised
from rewardsvc.policy_client.algorithms.returns import gae, rewards_to_go, spread_rewards
from rewardsvc.policy_client.algorithms.spec import AdvantageEstimator, AlgorithmSpec, KlPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Advantages of N completions.

    Attributes:
        advantages: float32 [N, T]; 0 where not `mask`.
        mask: bool [N, T]: tokens to learn from.
        returns: float32 [N, T]; None without a critic.
        zero_std: bool [P]: groups whose rewards are all equal.
        rewards: float32 [P, G], what was compared: a penalty in the reward is off; NaN where there
            is no reward.
    """

    advantages: Tensor
    mask: Tensor
    zero_std: Tensor
    rewards: Tensor
    returns: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened to N completions, before anything is made of it.

    Attributes:
        rewards: float32 [P, G]; NaN where there is none.
        usable: bool [N]: completions that may be learned from, as far as rewards do not say more.
        completion_mask: bool [N, T].
        kl: float32 [N, T], estimates per token to subtract from rewards or returns; None if the
            penalty is in neither.
        values: float32 [N, T], of the critic; None without one.
        step_rewards: float32 [N, T], process rewards at the last token of their steps; None
            without.
        is_step: bool [N, T], where a step ends; all False for a completion without process rewards.
            None without.
    """

    rewards: Tensor
    usable: Tensor
    completion_mask: Tensor
    kl: Tensor | None = None
    values: Tensor | None = None
    step_rewards: Tensor | None = None
    is_step: Tensor | None = None


def judge(
    outcome: Outcome, spec: AlgorithmSpec, *, kl_coef: float, baseline: float | None = None
) -> Judged:
    """Advantages by the spec's estimator, less a KL penalty where that is its place, whitened.

    Estimators over groups get the penalty of a whole completion, taken off its reward; estimators
    over tokens get each token's own. Completions that may not be learned from still have a reward,
    and inform the baseline of their group.

    Args:
        outcome: What happened.
        spec: The algorithm's row.
        kl_coef: The penalty's present coefficient.
        baseline: Of MOVING_BASELINE; None takes the mean of these rewards.

    Raises:
        ValueError: If the estimator needs values or process rewards, and there are none.
    """
    kl_in_reward = outcome.kl if spec.kl_place is KlPlace.REWARD else None
    returns_NT, rewards_PG = None, outcome.rewards
    if spec.advantage.per_token:
        advantages_NT, mask_NT, returns_NT = _of_tokens(outcome, spec, kl_coef, kl_in_reward)
        zero_std_P = leave_one_out(outcome.rewards).zero_std
    elif spec.advantage is AdvantageEstimator.STEP_GROUP_NORM:
        advantages_NT, mask_NT, zero_std_P = _of_steps(outcome, spec)
    else:
        if kl_in_reward is not None:
            total_N = torch.where(outcome.completion_mask, kl_in_reward, 0.0).sum(1)
            rewards_PG = rewards_PG - kl_coef * total_N.view_as(rewards_PG)
        group = _of_groups(rewards_PG, spec, baseline)
        mask_NT = outcome.completion_mask & (group.valid.flatten() & outcome.usable)[:, None]
        advantages_NT = torch.where(mask_NT, group.values.flatten()[:, None], 0.0)
        zero_std_P = group.zero_std
    if outcome.kl is not None and spec.kl_place is KlPlace.RETURN:
        advantages_NT = advantages_NT - kl_coef * rewards_to_go(outcome.kl, mask_NT)
    if spec.mask_zero_std:
        equal_N = zero_std_P.repeat_interleave(outcome.rewards.shape[1])
        mask_NT = mask_NT & ~equal_N[:, None]
    return Judged(
        advantages=masked_whiten(advantages_NT, mask_NT, whitening=spec.whitening),
        mask=mask_NT,
        returns=returns_NT,
        zero_std=zero_std_P,
        rewards=rewards_PG,
    )


def _of_groups(rewards_PG: Tensor, spec: AlgorithmSpec, baseline: float | None) -> GroupAdvantages:
    match spec.advantage:
        case AdvantageEstimator.GROUP_NORM:
            return group_normalised(rewards_PG, eps=spec.std_eps)
        case AdvantageEstimator.GROUP_CENTRE:
            return group_normalised(rewards_PG, scale_by_std=False)
        case AdvantageEstimator.GROUP_CENTRE_BATCH_STD:
            return group_centred_batch_scaled(rewards_PG, eps=spec.std_eps)
        case AdvantageEstimator.LEAVE_ONE_OUT:
            return leave_one_out(rewards_PG)
        case AdvantageEstimator.LEAVE_ONE_OUT_NORM:
            return leave_one_out_normalised(rewards_PG, eps=spec.std_eps)
        case AdvantageEstimator.MOVING_BASELINE:
            if baseline is None:
                present = rewards_PG[rewards_PG.isfinite()]
                baseline = float(present.mean()) if present.numel() else 0.0
            return against_baseline(rewards_PG, baseline)
        case _:
            raise ValueError(f"advantage is {spec.advantage}; it is not one over completions")


def _of_tokens(
    outcome: Outcome, spec: AlgorithmSpec, kl_coef: float, kl_NT: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`(advantages_NT, mask_NT, returns_NT)` of GAE and RETURN."""
    rewards_N = outcome.rewards.flatten()
    usable_N = rewards_N.isfinite() & outcome.usable
    penalties_NT = None if kl_NT is None else kl_coef * kl_NT
    step_rewards_NT = None
    if spec.process_weight > 0:
        step_rewards_NT, is_step_NT = _steps_of(outcome)
        # An empty completion has no steps, and nothing to learn from either.
        usable_N = usable_N & is_step_NT.any(1)
        rewards_N = spec.outcome_weight * rewards_N
    mask_NT = outcome.completion_mask & usable_N[:, None]
    rewards_NT = spread_rewards(rewards_N, mask_NT, penalties_NT=penalties_NT)
    if step_rewards_NT is not None:
        steps_NT = spec.process_weight * step_rewards_NT
        rewards_NT = rewards_NT + torch.where(mask_NT, steps_NT, 0.0)
    if spec.advantage is AdvantageEstimator.RETURN:
        return rewards_to_go(rewards_NT, mask_NT, gamma=spec.gamma), mask_NT, None
    if outcome.values is None:
        raise ValueError("values is None; GAE needs a critic's values")
    advantages_NT, returns_NT = gae(
        rewards_NT, outcome.values, mask_NT, gamma=spec.gamma, lam=spec.lam
    )
    return advantages_NT, mask_NT, returns_NT


def _of_steps(outcome: Outcome, spec: AlgorithmSpec) -> tuple[Tensor, Tensor, Tensor]:
    """`(advantages_NT, mask_NT, zero_std_P)` of STEP_GROUP_NORM."""
    step_rewards_NT, is_step_NT = _steps_of(outcome)
    num_generations = outcome.rewards.shape[1]
    completion_NT = outcome.completion_mask
    process_NT, valid_N = step_group_normalised(
        step_rewards_NT,
        is_step_NT,
        completion_NT,
        num_generations=num_generations,
        eps=spec.std_eps,
    )
    advantages_NT = spec.process_weight * process_NT
    zero_std_P = (process_NT == 0).view(-1, num_generations * completion_NT.shape[1]).all(1)
    if spec.outcome_weight > 0:
        whole = group_normalised(outcome.rewards, eps=spec.std_eps)
        valid_N = valid_N & whole.valid.flatten()
        advantages_NT = advantages_NT + spec.outcome_weight * whole.values.flatten()[:, None]
        zero_std_P = zero_std_P & whole.zero_std
    mask_NT = completion_NT & (valid_N & outcome.usable)[:, None]
    return torch.where(mask_NT, advantages_NT, 0.0), mask_NT, zero_std_P


def _steps_of(outcome: Outcome) -> tuple[Tensor, Tensor]:
    if outcome.step_rewards is None or outcome.is_step is None:
        raise ValueError(
            "step_rewards is None; process_weight is above 0, so the reward source must give steps"
        )
    return outcome.step_rewards, outcome.is_step
