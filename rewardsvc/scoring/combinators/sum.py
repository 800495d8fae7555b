"""`sum`: a weighted sum, optionally clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, FiniteFloat

from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import (
    Combinator,
    components_of,
    explanations_of,
    values_of,
)
from rewardsvc.scoring.combinators.bounds import Bounds, clipped
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.types import Score, Verdict


class SumConfig(ScorerConfigBase):
    """`{type: sum, of: {math: 1.0, think: 0.1}, clip: [-1, 1]}`.

    Attributes:
        of: Scorer → weight.
        clip: Bounds of the sum.
    """

    type: Literal["sum"]
    of: dict[str, FiniteFloat] = Field(min_length=1)
    clip: Bounds | None = None

    def children(self) -> tuple[str, ...]:
        """The scorers that are added."""
        return tuple(self.of)


class Sum(Combinator):
    """Adds weighted rewards. The verdict is that of the heaviest child that has one."""

    Config = SumConfig

    def __init__(self, config: SumConfig, env: BuildEnv) -> None:
        super().__init__(config.of, env)
        self._weights = config.of
        self._clip = config.clip

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The weighted sum; NON_FINITE if it overflows."""
        total = 0.0
        for name, value in values_of(scores).items():
            total += self._weights[name] * value
        return Score.of(
            clipped(total, self._clip),
            components=components_of(scores),
            verdict=self._verdict(scores),
            explanation=explanations_of(scores),
        )

    def _verdict(self, scores: Mapping[str, Score]) -> Verdict | None:
        judged = [name for name, score in scores.items() if score.verdict is not None]
        if not judged:
            return None
        return scores[max(judged, key=lambda name: abs(self._weights[name]))].verdict
