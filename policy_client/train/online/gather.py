"""Completions with their rewards; with dynamic sampling, only those of informative groups.

Legend: P prompts, G completions of each, N completions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from rewardsvc.policy_client.algorithms.shaping import informative_groups
from rewardsvc.policy_client.train.online.rewards import Rewards, concat_rewards
from rewardsvc.policy_client.train.online.rollout import Rollout, concat_rollouts
from rewardsvc.policy_client.train.online.sampler import PendingBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Completions, and rewards that may still be on their way.

    Attributes:
        rollout: The completions to learn from.
        rewards: Waits for their rewards.
        all_rewards: Waits for the rewards of all that were sampled, dropped ones included.
        num_completions: How many were sampled.
        num_tokens: Tokens of all that were sampled, and of their prompts.
        metrics: Of the sampling.
    """

    rollout: Rollout
    rewards: Callable[[], Rewards]
    all_rewards: Callable[[], Rewards]
    num_completions: int
    num_tokens: int
    metrics: dict[str, float] = field(default_factory=dict)


def gather(pending: PendingBatch) -> Gathered:
    """All of `pending`; its rewards are waited for once."""
    rollout = pending.rollout
    found: list[Rewards] = []

    def rewards() -> Rewards:
        if not found:
            found.append(pending.rewards())
        return found[0]

    prompts = sum(map(len, rollout.prompt_ids))
    return Gathered(
        rollout=rollout,
        rewards=rewards,
        all_rewards=rewards,
        num_completions=rollout.num_completions,
        num_tokens=prompts + int(rollout.completion_mask.sum()),
    )


def gather_informative(
    sample: Callable[[int], Gathered],
    num_prompts: int,
    *,
    num_generations: int,
    accuracy: str | None,
    max_rounds: int,
    pad_id: int,
) -> Gathered:
    """Samples until there are `num_prompts` groups in which some completions beat others.

    When the rounds run out the step goes on with the groups there are: stopping a run because its
    prompts have become too easy would be the wrong answer to success. If there is none at all, it
    gets the last round's groups, whose advantages are 0.

    Args:
        sample: Completes so many prompts.
        num_prompts: Wanted groups.
        num_generations: G.
        accuracy: Component of the reward that says how right a completion is; None for the reward
            as its source gave it. It must not be shaped: see `informative_groups`.
        max_rounds: Rounds of sampling, at least 1; each asks for what is still missing.
        pad_id: Stands where there is no token.

    Source: Yu et al. 2025, "DAPO", section 3.2 (arXiv:2503.14476).
    """
    kept: list[tuple[Rollout, Rewards]] = []
    rounds: list[tuple[Gathered, Rewards]] = []
    num_kept = num_sampled = 0
    while num_kept < num_prompts and len(rounds) < max_rounds:
        found = sample(num_prompts - num_kept)
        rewards = found.rewards()
        rounds.append((found, rewards))
        column = rewards.values if accuracy is None else rewards.component(accuracy)
        good_P = informative_groups(torch.from_numpy(column).view(-1, num_generations))
        num_sampled += len(good_P)
        rows = torch.arange(len(column)).view(-1, num_generations)[good_P].flatten().tolist()
        if rows:
            kept.append((found.rollout.select(rows), rewards.select(rows)))
            num_kept += int(good_P.sum())
    metrics = {
        "dynamic_sampling/rounds": float(len(rounds)),
        "dynamic_sampling/kept_share": num_kept / num_sampled,
    }
    kept = kept or [(rounds[-1][0].rollout, rounds[-1][1])]
    rewards_kept = concat_rewards([rewards for _, rewards in kept])
    everything = concat_rewards([rewards for _, rewards in rounds])
    return Gathered(
        rollout=concat_rollouts([rollout for rollout, _ in kept], pad_id=pad_id),
        rewards=lambda: rewards_kept,
        all_rewards=lambda: everything,
        num_completions=sum(found.num_completions for found, _ in rounds),
        num_tokens=sum(found.num_tokens for found, _ in rounds),
        metrics=metrics,
    )
