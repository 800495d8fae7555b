"""`clip`: another scorer's reward, kept within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import FiniteFloat, model_validator

from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import Combinator, components_of, value_of
from rewardsvc.scoring.combinators.bounds import clipped
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.types import Score


class ClipConfig(ScorerConfigBase):
    """`{type: clip, of: helpful, min: -5, max: 5}`.

    Attributes:
        of: The scorer whose rewards are clipped.
        min: The lowest reward.
        max: The highest.
    """

    type: Literal["clip"]
    of: str
    min: FiniteFloat
    max: FiniteFloat

    @model_validator(mode="after")
    def _ordered(self) -> ClipConfig:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; give min <= max")
        return self

    def children(self) -> tuple[str, ...]:
        """The clipped scorer."""
        return (self.of,)


class Clip(Combinator):
    """Clips a reward and, where there are any, each of its steps. The verdict stays."""

    Config = ClipConfig

    def __init__(self, config: ClipConfig, env: BuildEnv) -> None:
        super().__init__([config.of], env)
        self._of = config.of
        self._bounds = (config.min, config.max)

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The clipped reward."""
        score = scores[self._of]
        return Score(
            value=clipped(value_of(score), self._bounds),
            components=components_of(scores),
            steps=tuple(clipped(step, self._bounds) for step in score.steps),
            verdict=score.verdict,
            explanation=score.explanation,
        )
