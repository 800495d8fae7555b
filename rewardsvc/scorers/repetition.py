"""`repetition`: a penalty on completions that repeat themselves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from pydantic import Field

from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer, score_each
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.repetition import repetition_penalty


class RepetitionConfig(ScorerConfigBase):
    """`{type: repetition, ngram_size: 3, max_penalty: 0.5}`.

    Attributes:
        ngram_size: Words, or token ids where the completion is sent as such, in a row.
        max_penalty: What a completion pays in which every n-gram was there before.
    """

    type: Literal["repetition"]
    ngram_size: int = Field(default=3, ge=1, le=64)
    max_penalty: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)


class Repetition(Scorer):
    """`-max_penalty` times the share of repeated n-grams; a term of a `sum`."""

    Config = RepetitionConfig

    def __init__(self, config: RepetitionConfig, env: BuildEnv) -> None:
        self._config = config

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Counts each completion's n-grams."""
        return score_each(samples, self._score_one)

    def _score_one(self, sample: Sample) -> Score:
        penalty = repetition_penalty(
            _words_of(sample),
            ngram_size=self._config.ngram_size,
            max_penalty=self._config.max_penalty,
        )
        return Score(value=penalty)


def _words_of(sample: Sample) -> Sequence[Hashable]:
    completion = sample.completion
    if isinstance(completion, tuple) and completion and isinstance(completion[0], int):
        return completion
    return sample.completion_text.split()
