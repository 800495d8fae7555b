"""Best-of-n: sample several completions, keep the one that a reward model likes best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.inference.candidates import (
    Candidate,
    ScoreBy,
    best_first,
    scores_of,
    texts_of,
)
from rewardsvc.policy_client.train.data import Example
from rewardsvc.policy_client.train.data.tokenize import tokenize_prompt
from rewardsvc.policy_client.train.online.rewards import RewardSource
from rewardsvc.policy_client.train.online.rollout import FinishReason, RolloutEngine
from rewardsvc.policy_client.train.online.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfNSettings:
    """How the best of several is found.

    Attributes:
        num_samples: n, completions of each prompt.
        score_by: What of the reward decides.
        batch_size: Prompts to complete at a time.

    Raises:
        ValueError: If a number is less than 1.
    """

    num_samples: int = 16
    score_by: ScoreBy = ScoreBy.VALUE
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfNResult:
    """What came of one prompt.

    Attributes:
        best: The candidate with the highest score, of equal ones the first that was sampled; None
            if none has a score.
        candidates: All that were sampled, in that order; those without a score too.
    """

    best: Candidate | None
    candidates: tuple[Candidate, ...]

    @property
    def num_missing(self) -> int:
        """Candidates without a score."""
        return sum(candidate.score is None for candidate in self.candidates)


class BestOfN:
    """Samples n completions of a prompt and chooses by reward."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardSource,
        sampling: SamplingParams,
        *,
        settings: BestOfNSettings | None = None,
    ) -> None:
        """Puts the parts together.

        Args:
            engine: Completes prompts.
            tokenizer: The policy's.
            reward: Outcome or process rewards. All completions of a prompt are in one request.
            sampling: How completions are drawn; greedy ones would all be the same.
            settings: The rest.

        Raises:
            ValueError: If sampling is greedy and n is more than 1.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._reward = reward
        self._sampling = sampling
        self._settings = settings or BestOfNSettings()
        if sampling.greedy and self._settings.num_samples > 1:
            raise ValueError(
                f"sampling is greedy, so the {self._settings.num_samples} samples of a prompt are "
                "one; set greedy to False, or num_samples to 1"
            )

    def run(
        self, examples: Sequence[Example], generator: torch.Generator | None = None
    ) -> list[BestOfNResult]:
        """One result for each example, in order.

        A completion that was cut off at the limit takes part like any other. One that the engine
        aborted has no score, whatever there is of it.

        Raises:
            UnavailableError: If the reward source is away.
            ValueError: If the last step decides and the source rewards no steps.
        """
        size = self._settings.batch_size
        return [
            result
            for start in range(0, len(examples), size)
            for result in self._run_batch(examples[start : start + size], generator)
        ]

    def _run_batch(
        self, examples: Sequence[Example], generator: torch.Generator | None
    ) -> list[BestOfNResult]:
        n = self._settings.num_samples
        prompts = [tokenize_prompt(self._tokenizer, example.prompt) for example in examples]
        rollout = self._engine.generate(prompts, n, self._sampling, generator)
        lists = rollout.completion_lists()
        candidates = [
            Candidate(completion_ids=tuple(ids), text=text, finished=reason is FinishReason.STOP)
            for ids, text, reason in zip(
                lists, texts_of(self._tokenizer, lists), rollout.finish, strict=True
            )
        ]
        kept = [
            row for row, reason in enumerate(rollout.finish) if reason is not FinishReason.ABORT
        ]
        if kept:
            scores = scores_of(
                self._reward,
                [examples[row // n] for row in kept],
                [candidates[row] for row in kept],
                self._settings.score_by,
            )
            for row, score in zip(kept, scores, strict=True):
                candidates[row] = dataclasses.replace(candidates[row], score=score)
        groups = [tuple(candidates[start : start + n]) for start in range(0, len(candidates), n)]
        return [
            BestOfNResult(best=next(iter(best_first(group)), None), candidates=group)
            for group in groups
        ]
