"""`min` and `max`: the reward of the strictest, or of the kindest, of several scorers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import Combinator, components_of, values_of
from rewardsvc.scoring.combinators.group import GroupConfig
from rewardsvc.scoring.types import Score


class MinConfig(GroupConfig):
    """`{type: min, of: [a, b]}`."""

    type: Literal["min"]


class MaxConfig(GroupConfig):
    """`{type: max, of: [a, b]}`."""

    type: Literal["max"]


class Min(Combinator):
    """The lowest reward, with the verdict of the child that gave it; the first one on ties."""

    Config = MinConfig

    def __init__(self, config: MinConfig, env: BuildEnv) -> None:
        super().__init__(config.of, env)

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The lowest of the rewards."""
        values = values_of(scores)
        return _taken_from(min(values, key=values.__getitem__), scores)


class Max(Combinator):
    """The highest reward, with the verdict of the child that gave it; the first one on ties."""

    Config = MaxConfig

    def __init__(self, config: MaxConfig, env: BuildEnv) -> None:
        super().__init__(config.of, env)

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The highest of the rewards."""
        values = values_of(scores)
        return _taken_from(max(values, key=values.__getitem__), scores)


def _taken_from(name: str, scores: Mapping[str, Score]) -> Score:
    chosen = scores[name]
    return Score(
        value=chosen.value,
        components=components_of(scores),
        verdict=chosen.verdict,
        explanation=f"{name}: {chosen.explanation}" if chosen.explanation else "",
    )
