"""`format`: does the completion have the right shape?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator, model_validator

from rewardsvc.scorers._verdicts import score_of
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer, score_each
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.format import Format as FormatVerifier
from rewardsvc.verifiers.format import Preset


class FormatConfig(ScorerConfigBase):
    """`{type: format, preset: think}` or `{type: format, pattern: "Answer: .+"}`.

    Attributes:
        preset: See `rewardsvc.verifiers.format.Preset`.
        pattern: A regular expression that the whole completion must match. Write one that does not
            backtrack: completions are hostile, and nothing stops a search once it has begun.
        think_opened_by_prompt: For preset think: the chat template already wrote `<think>`.
    """

    type: Literal["format"]
    preset: Preset | None = None
    pattern: str | None = None
    think_opened_by_prompt: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _one_shape(self) -> FormatConfig:
        if (self.preset is None) == (self.pattern is None):
            raise ValueError("give one of preset and pattern")
        return self


class Format(Scorer):
    """1.0 for the right shape, else 0.0 and what is amiss."""

    Config = FormatConfig

    def __init__(self, config: FormatConfig, env: BuildEnv) -> None:
        self._verifier = FormatVerifier(
            preset=config.preset,
            pattern=config.pattern,
            think_opened_by_prompt=config.think_opened_by_prompt,
        )

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Checks each completion."""
        return score_each(samples, lambda s: score_of(self._verifier.verify(s.completion_text)))
