"""`product`: a gate. A reward counts only as far as every other child lets it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import (
    Combinator,
    components_of,
    explanations_of,
    values_of,
)
from rewardsvc.scoring.combinators.group import GroupConfig
from rewardsvc.scoring.types import Score, Verdict


class ProductConfig(GroupConfig):
    """`{type: product, of: [think, math]}`. A scorer that is named twice counts twice."""

    type: Literal["product"]


class Product(Combinator):
    """Multiplies rewards. An error is an error even where another child is 0.

    The verdict and explanation are those of the first child that failed, else the first verdict.
    """

    Config = ProductConfig

    def __init__(self, config: ProductConfig, env: BuildEnv) -> None:
        super().__init__(config.of, env)
        self._factors = config.of

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The product; NON_FINITE if it overflows."""
        values = values_of(scores)
        failing = next((name for name, score in scores.items() if _failed(score)), None)
        if failing is None:
            verdict = next((s.verdict for s in scores.values() if s.verdict is not None), None)
            explanation = explanations_of(scores)
        else:
            verdict = scores[failing].verdict
            explanation = f"{failing}: {scores[failing].explanation or 'the reward is 0'}"
        return Score.of(
            math.prod(values[name] for name in self._factors),
            components=components_of(scores),
            verdict=verdict,
            explanation=explanation,
        )


def _failed(score: Score) -> bool:
    return score.value == 0.0 or score.verdict not in (None, Verdict.ACCEPTED)
