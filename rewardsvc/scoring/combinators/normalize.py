"""`normalize`: another scorer's reward, centred and scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from rewardsvc.errors import ItemErrorCode
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import Combinator, components_of, value_of
from rewardsvc.scoring.combinators.bounds import Bounds, clipped
from rewardsvc.scoring.combinators.moments import RunningMoments
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.types import Sample, Score


class NormalizeConfig(ScorerConfigBase):
    """`{type: normalize, of: helpful, running: true}`, or with fixed `mean` and `std`.

    Attributes:
        of: The scorer whose rewards are normalised.
        mean: Fixed mean; together with `std`.
        std: Fixed standard deviation, above 0.
        running: Whether mean and standard deviation are those of the rewards seen so far.
        momentum: For `running`: the share of the old statistics after each reward, 0 to 1, so that
            they follow a policy that moves. Without it all rewards since the start count alike.
        eps: For `running`: a standard deviation of at most this is taken for none.
        clip: Bounds of the normalised reward.
    """

    type: Literal["normalize"]
    of: str
    mean: FiniteFloat | None = None
    std: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    running: bool = False
    momentum: float | None = Field(default=None, gt=0.0, lt=1.0)
    eps: float = Field(default=1e-8, ge=0.0, allow_inf_nan=False)
    clip: Bounds | None = None

    @model_validator(mode="after")
    def _one_source(self) -> NormalizeConfig:
        fixed = (self.mean is not None, self.std is not None)
        if self.running and any(fixed):
            raise ValueError("running is true, so leave out mean and std")
        if not self.running and not all(fixed):
            raise ValueError("give both mean and std, or running: true")
        if self.momentum is not None and not self.running:
            raise ValueError("momentum goes with running: true")
        return self

    def children(self) -> tuple[str, ...]:
        """The normalised scorer."""
        return (self.of,)


class Normalize(Combinator):
    """`(reward - mean) / std`, applied to each step reward as well.

    With running statistics, all rewards of a call are counted before any of them is normalised, and
    samples without a reward are not counted. Before the second reward, and while all are equal,
    there is no scale: rewards are centred only. Concurrent calls share the statistics; which is
    counted first is a matter of which is scored first. The version changes with every counted
    reward, because the same sample may then score differently.
    """

    Config = NormalizeConfig

    def __init__(self, config: NormalizeConfig, env: BuildEnv) -> None:
        super().__init__([config.of], env)
        self._config = config
        self._moments = RunningMoments(config.momentum)

    @property
    def version(self) -> str:
        """The child's version, and with running statistics the number of rewards behind them."""
        version = super().version
        return f"{version}+{self._moments.count}" if self._config.running else version

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Scores with the child, counts its rewards, normalises them."""
        [scores] = [await child.score(samples) for child in self._children.values()]
        # No await below: no other call can come between counting and normalising.
        if self._config.running:
            scores = [self._counted(score) for score in scores]
        return [self._score_row({self._config.of: score}) for score in scores]

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The normalised reward; NON_FINITE if it overflows."""
        score = scores[self._config.of]
        value, *steps = (self._normalised(n) for n in (value_of(score), *score.steps))
        overflown = next((n for n in (value, *steps) if not math.isfinite(n)), None)
        return Score.of(
            value if overflown is None else overflown,
            components=components_of(scores),
            steps=tuple(steps),
            verdict=score.verdict,
            explanation=score.explanation,
        )

    def _counted(self, score: Score) -> Score:
        if score.value is None or self._moments.add(score.value):
            return score
        return Score.failed(
            ItemErrorCode.NON_FINITE, f"the reward {score.value} is too large for the statistics"
        )

    def _normalised(self, value: float) -> float:
        if self._config.running:
            mean, std = self._moments.mean, self._moments.std
        else:
            mean, std = self._config.mean or 0.0, self._config.std or 1.0
        scale = std if std > self._config.eps or not self._config.running else 1.0
        return clipped((value - mean) / scale, self._config.clip)
