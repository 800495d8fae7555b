"""`ensemble`: several reward models as one, and how far they disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import Field

from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import (
    Combinator,
    components_of,
    explanations_of,
    values_of,
)
from rewardsvc.scoring.combinators.group import GroupConfig
from rewardsvc.scoring.types import Score

DISAGREEMENT = "disagreement"
"""The component that holds the standard deviation of the members' rewards."""


class Reduce(StrEnum):
    """What becomes of the members' rewards."""

    MEAN = "mean"
    MIN = "min"
    MEAN_MINUS_STD = "mean-minus-std"


class EnsembleConfig(GroupConfig):
    """`{type: ensemble, of: [rm-a, rm-b, rm-c], reduce: mean-minus-std}`.

    Attributes:
        reduce: See `Reduce`.
        std_coef: What the standard deviation is multiplied with before it is subtracted; for
            `mean-minus-std` only.
    """

    type: Literal["ensemble"]
    reduce: Reduce = Reduce.MEAN
    std_coef: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)


class Ensemble(Combinator):
    """Reduces the members' rewards to one that is harder to over-optimise.

    The standard deviation is that of the members as the whole population (divided by their number).
    The verdict is the members' where they agree on one.

    Source: Eisenstein et al., "Helping or Herding? Reward Model Ensembles Mitigate but do not
        Eliminate Reward Hacking", arXiv:2312.09244: mean, min, and mean minus standard deviation of
        the members.
    """

    Config = EnsembleConfig

    def __init__(self, config: EnsembleConfig, env: BuildEnv) -> None:
        super().__init__(config.of, env)
        self._reduce = config.reduce
        self._std_coef = config.std_coef

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The reduced reward, and the members' disagreement as a component."""
        values = list(values_of(scores).values())
        mean, std = _mean_and_std(values)
        match self._reduce:
            case Reduce.MEAN:
                value = mean
            case Reduce.MIN:
                value = min(values)
            case Reduce.MEAN_MINUS_STD:
                value = mean - self._std_coef * std
        verdicts = {score.verdict for score in scores.values()}
        return Score.of(
            value if math.isfinite(std) else std,
            components={**components_of(scores), DISAGREEMENT: std},
            verdict=verdicts.pop() if len(verdicts) == 1 else None,
            explanation=explanations_of(scores),
        )


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Relative to the first value, so that the deviation is exactly 0 where all are equal."""
    first, num_values = values[0], len(values)
    offset = sum((value - first) / num_values for value in values)
    deviations = [value - first - offset for value in values]
    return first + offset, math.hypot(*deviations) / math.sqrt(num_values)
