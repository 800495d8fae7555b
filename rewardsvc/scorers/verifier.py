"""`verifier`: a verifier by its registered name, one of this library or of an installed package.

A package registers its own under an entry point of the group `rewardsvc.verifiers`; see
`rewardsvc.verifiers.registry`. What its `verify` asks for by name is read from the sample:
`completion`, `prompt`, `answer`, `tests`, `rubric`, and any other name from the metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field

from rewardsvc.errors import ConfigError, ItemErrorCode
from rewardsvc.scorers._judged import score_by_name
from rewardsvc.scorers._threads import BoundedThreads
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import gather_or_cancel
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer, scorer_exception
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.base import Judge
from rewardsvc.verifiers.registry import make_verifier


class VerifierConfig(ScorerConfigBase):
    """`{type: verifier, name: ends_with, options: {ignore_case: true}}`.

    Attributes:
        name: The registered name.
        options: Keyword arguments of the verifier's class.
        timeout_s: How long it may take for one sample.
        concurrency: Samples at a time.
    """

    type: Literal["verifier"]
    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    timeout_s: float = Field(default=60.0, gt=0.0, le=86_400.0)
    concurrency: int = Field(default=4, ge=1, le=1024)


class Verifier(Scorer):
    """Calls a verifier on threads. What it raises is an error of that sample, without a reward."""

    Config = VerifierConfig

    def __init__(self, config: VerifierConfig, env: BuildEnv) -> None:
        self._config = config
        self._threads: BoundedThreads[Score] = BoundedThreads(
            config.concurrency, f"verifier-{env.name}"
        )
        try:
            self._judge = Judge.of(make_verifier(config.name, config.options))
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigError(f"scorers.{env.name}.{error}") from error

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Judges the samples, `concurrency` at a time."""
        return await gather_or_cancel([self._score_one(sample) for sample in samples])

    async def _score_one(self, sample: Sample) -> Score:
        try:
            return await self._threads.run(partial(self._judged, sample), self._config.timeout_s)
        except TimeoutError as error:
            reason = f"no verdict within timeout_s = {self._config.timeout_s:g}; {error}"
            return Score.failed(
                ItemErrorCode.VERIFIER_TIMEOUT,
                f"{self._config.name}: {reason.removesuffix('; ')}",
                retryable=True,
            )

    def _judged(self, sample: Sample) -> Score:
        try:
            return score_by_name(self._judge, sample)
        except BaseException as error:  # on a thread of its own even sys.exit() is just a failure
            return scorer_exception(self._config.name, error)
