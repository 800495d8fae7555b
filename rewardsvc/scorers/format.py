"""`format`: does the completion have the right shape?"""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from rewardsvc.scorers._judged import JudgedScorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.verifiers.format import Format as FormatVerifier
from rewardsvc.verifiers.format import Preset
from rewardsvc.verifiers.safe_regex import SafePattern


class FormatConfig(ScorerConfigBase):
    """`{type: format, preset: think}` or `{type: format, pattern: "Answer: .+"}`.

    Attributes:
        preset: See `rewardsvc.verifiers.format.Preset`.
        pattern: A regular expression that the whole completion must match; "." matches newlines.
            Each search has a time limit, and a completion that reaches it has no reward.
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
            SafePattern(pattern)
        return pattern

    @model_validator(mode="after")
    def _one_shape(self) -> FormatConfig:
        if (self.preset is None) == (self.pattern is None):
            raise ValueError("give one of preset and pattern")
        return self


class Format(JudgedScorer):
    """1.0 for the right shape, else 0.0 and what is amiss."""

    Config = FormatConfig

    def __init__(self, config: FormatConfig, env: BuildEnv) -> None:
        verifier = FormatVerifier(
            preset=config.preset,
            pattern=config.pattern,
            think_opened_by_prompt=config.think_opened_by_prompt,
        )
        super().__init__(verifier, env)
