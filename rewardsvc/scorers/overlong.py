"""`overlong`: DAPO's soft punishment of completions near and over the length limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from rewardsvc.scorers._lengths import LengthUnit, completion_length
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer, score_each
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.overlong import overlong_penalty


class OverlongConfig(ScorerConfigBase):
    """`{type: overlong, max_length: 20480, cache_length: 4096}`.

    Attributes:
        max_length: L_max, in `unit`.
        cache_length: L_cache, 0 to `max_length`: where the penalty grows, before the limit.
        unit: tokens, words or chars; see `LengthUnit`.
    """

    type: Literal["overlong"]
    max_length: int = Field(ge=1)
    cache_length: int = Field(ge=0)
    unit: LengthUnit = LengthUnit.TOKENS

    @model_validator(mode="after")
    def _cache_fits(self) -> OverlongConfig:
        if self.cache_length > self.max_length:
            raise ValueError(
                f"cache_length is {self.cache_length}; give at most max_length = {self.max_length}"
            )
        return self


class Overlong(Scorer):
    """0.0 for short completions, down to -1.0 at the limit; a term of a `sum`."""

    Config = OverlongConfig

    def __init__(self, config: OverlongConfig, env: BuildEnv) -> None:
        self._config = config

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Measures each completion."""
        return score_each(samples, self._score_one)

    def _score_one(self, sample: Sample) -> Score:
        length = completion_length(sample, self._config.unit)
        penalty = overlong_penalty(
            length,
            max_length=self._config.max_length,
            cache_length=self._config.cache_length,
        )
        return Score(value=penalty, components={"length": float(length)})
