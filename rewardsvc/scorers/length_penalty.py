"""`length_penalty`: what is written beyond a target costs reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from rewardsvc.errors import ItemFailure
from rewardsvc.scorers._lengths import LengthUnit, completion_length
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import (
    components_of,
    first_error,
    joint_version,
    value_of,
)
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.length import length_penalty


class LengthPenaltyConfig(ScorerConfigBase):
    """`{type: length_penalty, of: helpful, target: 512, weight: 0.1}`.

    Attributes:
        of: The scorer that the penalty is added to; without it the penalty stands alone.
        target: Free length, in `unit`.
        weight: The penalty at twice the target.
        unit: tokens, words or chars; see `LengthUnit`.
    """

    type: Literal["length_penalty"]
    of: str | None = None
    target: int = Field(ge=1)
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    unit: LengthUnit = LengthUnit.TOKENS

    def children(self) -> tuple[str, ...]:
        """The scorer that is penalised, if any."""
        return () if self.of is None else (self.of,)


class LengthPenalty(Scorer):
    """Another scorer's reward (0 without one) plus `-weight * max(0, length - target) / target`.

    The verdict, explanation and steps are the other scorer's.
    """

    Config = LengthPenaltyConfig

    def __init__(self, config: LengthPenaltyConfig, env: BuildEnv) -> None:
        self._config = config
        self._children = {name: env.child(name) for name in config.children()}

    @property
    def version(self) -> str:
        """A digest of the other scorer's version; empty where that has none."""
        return joint_version({name: child.version for name, child in self._children.items()})

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Scores the samples and measures them."""
        columns = {name: await child.score(samples) for name, child in self._children.items()}
        return [
            self._score_one(sample, {name: scores[row] for name, scores in columns.items()})
            for row, sample in enumerate(samples)
        ]

    def _score_one(self, sample: Sample, scores: Mapping[str, Score]) -> Score:
        error = first_error(scores)
        if error is not None:
            return Score(error=error)
        try:
            length = completion_length(sample, self._config.unit)
        except ItemFailure as failure:
            return Score(error=failure.error)
        penalty = length_penalty(length, target=self._config.target, weight=self._config.weight)
        inner = next(iter(scores.values()), Score(value=0.0))
        return Score.of(
            value_of(inner) + penalty,
            components={
                **components_of(scores),
                "length": float(length),
                "length_penalty": penalty,
            },
            steps=inner.steps,
            verdict=inner.verdict,
            explanation=inner.explanation,
        )
