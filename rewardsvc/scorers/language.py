"""`language`: is the completion written in the script of its language?

Without a language of its own it reads `metadata.language`, an ISO 639-1 code.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rewardsvc.scorers._judged import JudgedScorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.verifiers.language import LanguageConsistency


class LanguageConfig(ScorerConfigBase):
    """`{type: language, language: zh, min_share: 0.7}`.

    Attributes:
        language: ISO 639-1 code for all samples; left out where each brings its own.
        min_share: The share of letters from which the reward is 1.0, below which it is 0.0; left
            out, the share itself is the reward.
        answer_only: Whether `<think>…</think>` is left out.
    """

    type: Literal["language"]
    language: str | None = None
    min_share: float | None = Field(default=None, gt=0.0, le=1.0)
    answer_only: bool = False

    @field_validator("language")
    @classmethod
    def _known(cls, language: str | None) -> str | None:
        LanguageConsistency(language=language)
        return language


class Language(JudgedScorer):
    """The share of letters that are of the language's script, 0.0 to 1.0."""

    Config = LanguageConfig

    def __init__(self, config: LanguageConfig, env: BuildEnv) -> None:
        super().__init__(LanguageConsistency(**config.model_dump(exclude={"type"})), env)
