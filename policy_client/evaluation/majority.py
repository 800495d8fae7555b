"""Majority vote (self-consistency): the answer that most samples agree on."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from rewardsvc.policy_client.evaluation.pass_at_k import SUCCESS


def majority_vote(
    answers: Sequence[Hashable | None],
    rewards: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
) -> float:
    """The chance that the winning answer of one problem is right.

    Answers vote once each, or with a weight (the sum of a reward model's scores in place of the
    number of samples). Answers that tie for the most votes are drawn from at random, so the result
    is the share of right ones among them.

    Args:
        answers: [N], normalised: equal answers must compare equal. None has no vote.
        rewards: [N] verdicts of the same samples; above 1/2 is right. An answer counts as right by
            the first of its samples that has a verdict.
        weights: [N], at least 0; NaN has no vote.

    Returns:
        In [0, 1]; NaN if nobody votes, or no leading answer has a verdict.

    Raises:
        ValueError: If lengths differ or a weight is negative.

    Source:
        Wang et al. 2022, "Self-consistency", arXiv:2203.11171; weighted: Li et al. 2022,
        arXiv:2206.02336, equation 1.
    """
    weights = [1.0] * len(answers) if weights is None else weights
    if not len(answers) == len(rewards) == len(weights):
        raise ValueError(
            f"{len(answers)} answers, {len(rewards)} rewards and {len(weights)} weights; "
            "give one of each for every sample"
        )
    votes: dict[Hashable, float] = {}
    verdicts: dict[Hashable, float] = {}
    for answer, reward, weight in zip(answers, rewards, weights, strict=True):
        if weight < 0:
            raise ValueError(f"a weight is {weight}; none may be negative")
        if answer is None or math.isnan(weight):
            continue
        votes[answer] = votes.get(answer, 0.0) + weight
        if not math.isnan(reward):
            verdicts.setdefault(answer, float(reward > SUCCESS))
    if not votes:
        return math.nan
    most = max(votes.values())
    leading = [verdicts[answer] for answer in votes if votes[answer] == most and answer in verdicts]
    return sum(leading) / len(leading) if leading else math.nan
