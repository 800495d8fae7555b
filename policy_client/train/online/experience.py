"""From rollouts and rewards to what the update learns from. Here the advantage column is applied.

Legend: P prompts, G completions of each, N = P G completions, T tokens of the longest one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.advantages import (
    GroupAdvantages,
    group_normalised,
    leave_one_out,
)
from rewardsvc.policy_client.algorithms.masking import masked_whiten
from rewardsvc.policy_client.algorithms.presets import AdvantageEstimator, AlgorithmSpec
from rewardsvc.policy_client.algorithms.returns import gae, rewards_to_go, spread_rewards
from rewardsvc.policy_client.train.online.sequences import Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """One step's rollouts, judged.

    Attributes:
        sequences: Prompts and completions, N rows.
        mask: bool [N, T]: tokens to learn from: of completions that have a reward and a baseline.
        old_logprobs: float32 [N, T], under the policy that made the rollout.
        draw_logprobs: float32 [N, T], under the distribution that tokens were drawn from.
        advantages: float32 [N, T]; 0 where not `mask`.
        ref_logprobs: float32 [N, T], under the reference; None without one.
        returns: float32 [N, T], what the critic should say; None without a critic.
        old_values: float32 [N, T], what it said; None without a critic.
    """

    sequences: Sequences
    mask: Tensor
    old_logprobs: Tensor
    draw_logprobs: Tensor
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    returns: Tensor | None = None
    old_values: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Advantages of N completions.

    Attributes:
        advantages: float32 [N, T]; 0 where not `mask`.
        mask: bool [N, T]: tokens to learn from.
        returns: float32 [N, T]; None without a critic.
        zero_std: bool [P]: groups whose rewards are all equal.
    """

    advantages: Tensor
    mask: Tensor
    zero_std: Tensor
    returns: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened to N completions, before anything is made of it.

    Attributes:
        rewards: float32 [P, G]; NaN where there is none.
        usable: bool [N]: completions that may be learned from, as far as rewards do not say more.
        completion_mask: bool [N, T].
        kl: float32 [N, T], estimates per token to subtract from rewards; None if the penalty is not
            in the reward.
        values: float32 [N, T], of the critic; None without one.
    """

    rewards: Tensor
    usable: Tensor
    completion_mask: Tensor
    kl: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageParams:
    """Numbers that advantages depend on; see the fields of the same names in `OnlineConfig`."""

    kl_coef: float
    gamma: float
    lam: float
    eps: float


def judge(outcome: Outcome, spec: AlgorithmSpec, params: AdvantageParams) -> Judged:
    """Advantages by the spec's estimator; a KL penalty is taken off first where there is one.

    Estimators over groups get the penalty of a whole completion, taken off its reward; estimators
    over tokens get each token's own.
    """
    if spec.advantage.per_token:
        return _judge_tokens(outcome, spec, params)
    rewards_PG = outcome.rewards
    if outcome.kl is not None:
        total_N = torch.where(outcome.completion_mask, outcome.kl, 0.0).sum(1)
        rewards_PG = rewards_PG - params.kl_coef * total_N.view_as(rewards_PG)
    # Completions that may not be learned from still have a reward, and inform the baseline.
    group = _judge_groups(rewards_PG, spec.advantage, params.eps)
    rows_N1 = (group.valid.flatten() & outcome.usable)[:, None]
    mask_NT = outcome.completion_mask & rows_N1
    advantages_NT = torch.where(mask_NT, group.values.flatten()[:, None], 0.0)
    return Judged(advantages=advantages_NT, mask=mask_NT, zero_std=group.zero_std)


def _judge_groups(rewards_PG: Tensor, estimator: AdvantageEstimator, eps: float) -> GroupAdvantages:
    if estimator is AdvantageEstimator.LEAVE_ONE_OUT:
        return leave_one_out(rewards_PG)
    scale = estimator is AdvantageEstimator.GROUP_NORM
    return group_normalised(rewards_PG, scale_by_std=scale, eps=eps)


def _judge_tokens(outcome: Outcome, spec: AlgorithmSpec, params: AdvantageParams) -> Judged:
    rewards_N = outcome.rewards.flatten()
    rows_N1 = (rewards_N.isfinite() & outcome.usable)[:, None]
    mask_NT = outcome.completion_mask & rows_N1
    penalties_NT = None if outcome.kl is None else params.kl_coef * outcome.kl
    rewards_NT = spread_rewards(rewards_N, mask_NT, penalties_NT=penalties_NT)
    returns_NT = None
    if spec.advantage is AdvantageEstimator.GAE:
        if outcome.values is None:
            raise ValueError("values is None; GAE needs a critic's values")
        advantages_NT, returns_NT = gae(
            rewards_NT, outcome.values, mask_NT, gamma=params.gamma, lam=params.lam
        )
    else:
        advantages_NT = rewards_to_go(rewards_NT, mask_NT, gamma=params.gamma)
    zero_std_P = leave_one_out(outcome.rewards).zero_std
    return Judged(
        advantages=masked_whiten(advantages_NT, mask_NT),
        mask=mask_NT,
        returns=returns_NT,
        zero_std=zero_std_P,
    )
