"""`code`: does the program in the completion pass the sample's tests?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from pydantic import Field

from rewardsvc.errors import ConfigError, DeadlinePassedError, ItemErrorCode, ItemFailure
from rewardsvc.scorers._verdicts import broken, score_of
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import gather_or_cancel
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.context import current_call
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.code import CodeVerifier, Credit, Tests, parse_tests
from rewardsvc.verifiers.sandbox import Isolation, Sandbox, SandboxError, UnknownLanguageError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class CodeConfig(ScorerConfigBase):
    """`{type: code, language: python, time_limit_ms: 2000, memory_mib: 256}`.

    Attributes:
        language: Of the sandbox's table; see `rewardsvc doctor`.
        time_limit_ms: CPU time of one test, in milliseconds.
        memory_mib: Memory of one test.
        credit: What a program earns that is right on some tests: all-or-nothing or fraction.
        bare_code: Whether a completion without any code fence is itself the program.
        num_slots: Programs at a time; None for the number of cores and one.
        isolation: What must stand before untrusted code runs: strict, full or best-effort.
    """

    type: Literal["code"]
    language: str = "python"
    time_limit_ms: int = Field(default=2000, ge=1, le=600_000)
    memory_mib: int = Field(default=256, ge=16, le=1 << 20)
    credit: Credit = Credit.ALL_OR_NOTHING
    bare_code: bool = False
    num_slots: int | None = Field(default=None, ge=2, le=1024)
    isolation: Isolation = Isolation.FULL


class Code(Scorer):
    """Runs each sample's program against its `tests_json`; 1.0 if all tests pass."""

    Config = CodeConfig

    def __init__(self, config: CodeConfig, env: BuildEnv) -> None:
        self._config = config
        self._name = env.name
        self._sandbox: Sandbox | None = None
        self._verifier: CodeVerifier | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Builds the sandbox, so that a machine that cannot isolate programs is found out now."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        config = self._config
        try:
            sandbox = Sandbox(num_slots=config.num_slots, isolation=config.isolation)
            self._sandbox = sandbox
            sandbox.start()
            self._verifier = CodeVerifier(
                config.language,
                time_limit_ms=config.time_limit_ms,
                memory_mib=config.memory_mib,
                credit=config.credit,
                bare_code=config.bare_code,
                sandbox=sandbox,
            )
        except (SandboxError, UnknownLanguageError) as error:
            if self._sandbox is not None:
                self._sandbox.close()
            raise ConfigError(f"scorers.{self._name}: {error}") from error
        self._threads = ThreadPoolExecutor(
            max_workers=sandbox.num_slots, thread_name_prefix=f"code-{self._name}"
        )

    async def close(self) -> None:
        """Ends the sandbox's processes."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._sandbox is not None:
            await asyncio.to_thread(self._sandbox.close)

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Judges the samples, as many at a time as the sandbox has slots."""
        seconds_left = current_call().seconds_left()
        try:
            async with asyncio.timeout(None if seconds_left == float("inf") else seconds_left):
                return await gather_or_cancel(
                    [self._in_thread(self._score_one, sample) for sample in samples]
                )
        except TimeoutError as error:
            raise DeadlinePassedError(f"{self._name}: the deadline passed") from error

    def _score_one(self, sample: Sample) -> Score:
        assert self._verifier is not None, "start() has not been awaited"
        try:
            verdict = self._verifier.verify(sample.completion_text, tests_of(sample))
            return score_of(verdict)
        except ItemFailure as failure:
            return Score(error=failure.error)
        except Exception as error:  # a bug is this sample's error and no reward, not its call's
            return broken(self._name, error)

    async def _in_thread(
        self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))


def tests_of(sample: Sample) -> Tests:
    """The sample's test suite.

    Raises:
        ItemFailure: BAD_REFERENCE, if it has none, or none that can be read.
    """
    if sample.tests_json is None:
        raise ItemFailure(ItemErrorCode.BAD_REFERENCE, "tests_json is missing; send the tests")
    try:
        return parse_tests(sample.tests_json)
    except ValueError as error:
        raise ItemFailure(ItemErrorCode.BAD_REFERENCE, str(error)) from error
