"""The metrics of a step, under the names that TRL's users know.

Legend: P prompts, G completions of each, N completions, T tokens of the longest one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rewardsvc.policy_client.algorithms.masking import masked_mean
from rewardsvc.policy_client.train.online.rewards import Rewards
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout


def reward_metrics(
    rewards: Rewards, *, num_generations: int, true_quality: str | None = None
) -> dict[str, float]:
    """Means and spreads over the completions that have a reward; `reward` is missing if none has.

    `reward_std` is the mean over groups of their standard deviations, or that of all rewards where
    groups have one completion. `true_quality` is the mean of the component of that name.
    """
    values_PG = rewards.values.reshape(-1, num_generations)
    present = values_PG[~np.isnan(values_PG)]
    metrics = {"rewards/num_missing": float(values_PG.size - present.size)}
    if present.size:
        metrics["reward"] = float(present.mean())
        groups = [present] if num_generations == 1 else [row[~np.isnan(row)] for row in values_PG]
        spreads = [float(group.std(ddof=1)) for group in groups if group.size > 1]
        metrics["reward_std"] = float(np.mean(spreads)) if spreads else 0.0
    if true_quality is not None:
        metrics.update(mean_of_present("true_quality", rewards.component(true_quality)))
    for name, column in rewards.components.items():
        part = column[~np.isnan(column)]
        if part.size:
            metrics[f"rewards/{name}/mean"] = float(part.mean())
            metrics[f"rewards/{name}/std"] = float(part.std(ddof=1)) if part.size > 1 else 0.0
    return metrics


def mean_of_present(name: str, values_N: NDArray[np.float32]) -> dict[str, float]:
    """The mean of what is not NaN, under `name`; nothing if all is."""
    present = values_N[~np.isnan(values_N)]
    return {name: float(present.mean())} if present.size else {}


def completion_metrics(rollout: Rollout) -> dict[str, float]:
    """Lengths in tokens, the share of completions cut off at the limit, and the policy's entropy.

    `entropy` is the mean of -log p of the drawn tokens, in nats: an unbiased estimate of the mean
    entropy of the distributions that they were drawn from, unless top-k or top-p cut these short.
    """
    lengths = rollout.completion_mask.sum(1).float()
    cut = sum(reason is FinishReason.LENGTH for reason in rollout.finish)
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": cut / rollout.num_completions,
        "entropy": -float(masked_mean(rollout.logprobs, rollout.completion_mask)),
    }


def zero_std_share(zero_std_P: Tensor) -> dict[str, float]:
    """The share of groups whose rewards are all equal: nothing is learned from them."""
    return {"frac_reward_zero_std": float(zero_std_P.float().mean())}
