"""Completions that a search chooses from, and how they are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.train.data import Example
from rewardsvc.policy_client.train.online.rewards import RewardRequest, RewardSource


class ScoreBy(StrEnum):
    """What of a reward orders candidates.

    VALUE: The reward itself.
    LAST_STEP: The process reward of the last step: what the reward model expects of the rest.
    """

    VALUE = "value"
    LAST_STEP = "last_step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A completion, or the start of one.

    Attributes:
        completion_ids: Its token ids, with the end-of-sequence token if it has one.
        text: Those without special tokens.
        finished: Whether it ended by itself.
        score: What it is chosen by; None where there is no reward, which is not a bad one.
    """

    completion_ids: tuple[int, ...]
    text: str
    finished: bool
    score: float | None = None


def scores_of(
    reward: RewardSource,
    examples: Sequence[Example],
    candidates: Sequence[Candidate],
    score_by: ScoreBy,
) -> list[float | None]:
    """A finite score for each candidate, or None, in one request.

    Args:
        reward: Where rewards come from.
        examples: The row of the data set that each candidate answers.
        candidates: At least one.
        score_by: Which part of the reward.

    Raises:
        UnavailableError: If the reward source is away.
        ValueError: If the last step is asked for and the source rewards no steps.
    """
    rewards = reward.score(
        RewardRequest(
            examples=list(examples),
            completions=[candidate.text for candidate in candidates],
            completion_ids=[list(candidate.completion_ids) for candidate in candidates],
        )
    )
    values = [float(value) for value in rewards.values]
    if score_by is ScoreBy.LAST_STEP:
        if rewards.steps is None and not all(math.isnan(value) for value in values):
            raise ValueError(
                "score_by is 'last_step', but the reward source gives no process rewards; use a "
                "process reward model, or 'value'"
            )
        steps = rewards.steps or [None] * len(values)
        values = [float(row[-1]) if row else math.nan for row in steps]
    return [value if math.isfinite(value) else None for value in values]


def best_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that have a score, from the highest; of equal ones the earlier is first."""
    scored = [candidate for candidate in candidates if candidate.score is not None]
    return sorted(scored, key=lambda candidate: -_score(candidate))


def weighted_best(
    candidates: Sequence[Candidate], answer_of: Callable[[str], Hashable | None]
) -> Candidate | None:
    """Best-of-n, weighted: the best candidate of the answer whose scores sum to the most.

    Candidates that are not finished or have no score have no vote.

    Args:
        candidates: Of one prompt, with scores of at least 0, such as probabilities.
        answer_of: Text → its answer, normalised so that equal answers compare equal; None for no
            answer, which has no vote.

    Returns:
        None if nobody votes. Of answers with equal sums, the one of the better candidate; of
        candidates with equal scores, the earlier.

    Raises:
        ValueError: If a score is negative, which would make a sum mean nothing.

    Source:
        Li et al. 2022, "DiVeRSe", arXiv:2206.02336, equation 1; Snell et al. 2024,
        arXiv:2408.03314, section 5.1.
    """
    ordered = best_first([candidate for candidate in candidates if candidate.finished])
    votes: dict[Hashable, float] = {}
    best: dict[Hashable, Candidate] = {}
    for candidate in ordered:
        if _score(candidate) < 0:
            raise ValueError(
                f"a score is {candidate.score}; votes are sums, so squash scores with a sigmoid"
            )
        answer = answer_of(candidate.text)
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + _score(candidate)
            best.setdefault(answer, candidate)
    return best[max(votes, key=votes.__getitem__)] if votes else None


def texts_of(
    tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[Sequence[int]]
) -> list[str]:
    """Texts without special tokens."""
    return list(
        tokenizer.batch_decode([list(ids) for ids in completion_ids], skip_special_tokens=True)
    )


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score
