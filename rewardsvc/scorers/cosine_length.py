"""`cosine_length`: another scorer's right or wrong, bent by the completion's length.

Right answers earn less the longer they are, wrong ones lose less, and what reaches the limit pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, FiniteFloat

from rewardsvc.errors import ItemFailure
from rewardsvc.scorers._lengths import LengthUnit, completion_length
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import components_of, first_error, value_of
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.cosine_length import CosineCurve, cosine_length_reward


class CosineLengthConfig(ScorerConfigBase):
    """`{type: cosine_length, of: math, max_length: 4096}`.

    Attributes:
        of: The scorer that says whether the answer is right.
        correct_from: The reward of that scorer from which an answer is right.
        max_length: L_max, in `unit`.
        unit: tokens, words or chars; see `LengthUnit`.
        correct_at_zero: What a right answer of length 0 would earn.
        correct_at_max: What a right answer earns just below the limit.
        wrong_at_zero: The same for wrong answers.
        wrong_at_max: The same for wrong answers.
        at_limit: What a completion earns that reached the limit, right or wrong; null goes on with
            the ends of the curves.
    """

    type: Literal["cosine_length"]
    of: str
    correct_from: FiniteFloat = 1.0
    max_length: int = Field(ge=1)
    unit: LengthUnit = LengthUnit.TOKENS
    correct_at_zero: FiniteFloat = 2.0
    correct_at_max: FiniteFloat = 1.0
    wrong_at_zero: FiniteFloat = -10.0
    wrong_at_max: FiniteFloat = 0.0
    at_limit: FiniteFloat | None = -10.0

    def children(self) -> tuple[str, ...]:
        """The scorer that judges."""
        return (self.of,)


class CosineLength(Scorer):
    """A reward of right and wrong that depends on length."""

    Config = CosineLengthConfig

    def __init__(self, config: CosineLengthConfig, env: BuildEnv) -> None:
        self._config = config
        self._judge = env.child(config.of)
        self._curve = CosineCurve(
            max_length=config.max_length,
            correct_at_zero=config.correct_at_zero,
            correct_at_max=config.correct_at_max,
            wrong_at_zero=config.wrong_at_zero,
            wrong_at_max=config.wrong_at_max,
            at_limit=config.at_limit,
        )

    @property
    def version(self) -> str:
        """The judge's version."""
        return self._judge.version

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Judges and measures each completion."""
        judged = await self._judge.score(samples)
        return [self._bent(s, score) for s, score in zip(samples, judged, strict=True)]

    def _bent(self, sample: Sample, judged: Score) -> Score:
        scores = {self._config.of: judged}
        error = first_error(scores)
        if error is not None:
            return Score(error=error)
        try:
            length = completion_length(sample, self._config.unit)
        except ItemFailure as failure:
            return Score(error=failure.error)
        correct = value_of(judged) >= self._config.correct_from
        return Score(
            value=cosine_length_reward(length, correct=correct, curve=self._curve),
            components={**components_of(scores), "length": float(length)},
            verdict=judged.verdict,
            explanation=judged.explanation,
        )
