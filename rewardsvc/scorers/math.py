"""`math`: is the answer at the end of the completion the reference answer?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from pydantic import Field

from rewardsvc.errors import ConfigError, DeadlinePassedError, ItemFailure
from rewardsvc.scorers._verdicts import broken, reference_of, score_of
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import gather_or_cancel
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.context import current_call
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.math.pool import shared_pool
from rewardsvc.verifiers.math.process import PoolLimits, WorkerStartError
from rewardsvc.verifiers.math.verifier import MathVerifier

_P = ParamSpec("_P")
_T = TypeVar("_T")


class MathConfig(ScorerConfigBase):
    """`{type: math}`.

    Attributes:
        require_box: Whether only `\\boxed{…}` counts as an answer.
        last_box_only: Whether earlier boxes are working rather than a hedge.
        num_workers: Processes that compare expressions.
        time_limit_s: CPU time of one comparison, in seconds.
        memory_mib: Address space of one process.
    """

    type: Literal["math"]
    require_box: bool = False
    last_box_only: bool = False
    num_workers: int = Field(default=2, ge=1, le=256)
    time_limit_s: float = Field(default=4.0, gt=0.0, le=600.0)
    memory_mib: int = Field(default=1024, ge=512)


class Math(Scorer):
    """Checks mathematical answers; 1.0 if right, 0.0 if not."""

    Config = MathConfig
    WALL_PER_CPU = 10.0
    """How much longer than its CPU time a comparison may take by the clock of a busy machine."""

    def __init__(self, config: MathConfig, env: BuildEnv) -> None:
        self._limits = PoolLimits(
            num_workers=config.num_workers,
            cpu_seconds=config.time_limit_s,
            wall_seconds=config.time_limit_s * self.WALL_PER_CPU,
            memory_mib=config.memory_mib,
        )
        self._verifier = MathVerifier(
            require_box=config.require_box,
            last_box_only=config.last_box_only,
            limits=self._limits,
        )
        self._name = env.name
        self._threads = ThreadPoolExecutor(
            max_workers=config.num_workers, thread_name_prefix=f"math-{env.name}"
        )

    async def start(self) -> None:
        """Starts a process, to find out that Math-Verify is missing before the first sample."""
        try:
            await self._in_thread(shared_pool(self._limits).start)
        except WorkerStartError as error:
            raise ConfigError(f"scorers.{self._name}: {error}") from error

    async def close(self) -> None:
        """Lets go of the threads; the processes end with the program."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Checks the samples, as many at a time as there are processes."""
        seconds_left = current_call().seconds_left()
        try:
            async with asyncio.timeout(None if seconds_left == float("inf") else seconds_left):
                return await gather_or_cancel(
                    [self._in_thread(self._score_one, sample) for sample in samples]
                )
        except TimeoutError as error:
            raise DeadlinePassedError(f"{self._name}: the deadline passed") from error

    def _score_one(self, sample: Sample) -> Score:
        try:
            return score_of(self._verifier.verify(sample.completion_text, reference_of(sample)))
        except ItemFailure as failure:
            return Score(error=failure.error)
        except Exception as error:  # a bug is this sample's error and no reward, not its call's
            return broken(self._name, error)

    async def _in_thread(
        self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))
