"""`python`: a function of the operator's as a scorer.

```python
# rewards.py, beside the configuration
def brevity(sample):
    return 1.0 / (1 + len(sample.completion_text))
```

```yaml
brief: {type: python, function: "rewards.py:brevity"}
```
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pydantic import Field

from rewardsvc.errors import ConfigError, ItemErrorCode
from rewardsvc.scorers._threads import BoundedThreads
from rewardsvc.scorers._user_code import (
    load_function,
    score_of_result,
    scores_of_batch,
    source_digest,
)
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import gather_or_cancel
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer, scorer_exception
from rewardsvc.scoring.types import Sample, Score


class PythonConfig(ScorerConfigBase):
    """`{type: python, function: "rewards.py:brevity"}`.

    Attributes:
        function: "package.module:function", or "file.py:function" relative to the configuration.
        batched: Whether the function takes the list of samples and returns a list, one entry each;
            else it takes one `Sample`.
        timeout_s: How long one call of the function may take.
        concurrency: Calls at a time.
        kwargs: Keyword arguments of every call.
    """

    type: Literal["python"]
    function: str
    batched: bool = False
    timeout_s: float = Field(default=60.0, gt=0.0, le=86_400.0)
    concurrency: int = Field(default=8, ge=1, le=1024)
    kwargs: dict[str, Any] = Field(default_factory=dict)

    def runs_code_of_the_config(self) -> bool:
        """Always: that is what it is for."""
        return True


class PythonFunction(Scorer):
    """Calls a function, sync (on a thread) or async, for each sample or for all at once.

    It returns a number, None (no reward), a dict with "score", or a `Score`; see `_user_code`. An
    exception, a timeout or a malformed result is the error of that sample, or of the whole batch
    where the function is batched.
    """

    Config = PythonConfig

    def __init__(self, config: PythonConfig, env: BuildEnv) -> None:
        self._config = config
        self._env = env
        self._function: Callable[..., Any] | None = None
        self._is_async = False
        self._version = ""
        self._threads: BoundedThreads[object] = BoundedThreads(
            config.concurrency, f"python-{env.name}"
        )
        self._async_room = asyncio.Semaphore(config.concurrency)

    @property
    def version(self) -> str:
        """A digest of the file that defines the function."""
        return self._version

    async def start(self) -> None:
        """Imports the function.

        Raises:
            ConfigError: If there is none; the message names what was found.
        """
        try:
            function = await asyncio.to_thread(
                load_function, self._config.function, self._env.base_dir
            )
        except ConfigError as error:
            raise ConfigError(f"scorers.{self._env.name}.{error}") from error
        self._is_async = _is_async(function)
        self._version = await asyncio.to_thread(source_digest, function)
        self._function = partial(function, **self._config.kwargs)

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Calls the function."""
        if self._config.batched:
            return await self._score_batch(list(samples)) if samples else []
        return await gather_or_cancel([self._score_one(sample) for sample in samples])

    async def _score_batch(self, samples: list[Sample]) -> list[Score]:
        try:
            return scores_of_batch(await self._call(samples), len(samples))
        except _CallFailure as failure:
            return [failure.score] * len(samples)

    async def _score_one(self, sample: Sample) -> Score:
        try:
            return score_of_result(await self._call(sample))
        except _CallFailure as failure:
            return failure.score

    async def _call(self, argument: object) -> object:
        """What the function returns.

        Raises:
            _CallFailure: If it does not return.
        """
        assert self._function is not None, "start was not awaited"
        timeout_s = self._config.timeout_s
        try:
            if self._is_async:
                async with self._async_room, asyncio.timeout(timeout_s):
                    result = await self._awaited(argument)
            else:
                result = await self._threads.run(partial(self._returned, argument), timeout_s)
        except TimeoutError as error:
            message = f"no result within timeout_s = {timeout_s:g}; {error}".removesuffix("; ")
            raise _CallFailure(
                Score.failed(
                    ItemErrorCode.VERIFIER_TIMEOUT,
                    f"{self._config.function}: {message}",
                    retryable=True,
                )
            ) from error
        if isinstance(result, _Raised):
            raise _CallFailure(scorer_exception(self._config.function, result.error))
        return result

    def _returned(self, argument: object) -> object:
        assert self._function is not None
        try:
            return self._function(argument)
        except BaseException as error:  # on a thread of its own even sys.exit() is just a failure
            return _Raised(error)

    async def _awaited(self, argument: object) -> object:
        assert self._function is not None
        try:
            return await self._function(argument)
        except (Exception, SystemExit) as error:  # not CancelledError: that is ours
            return _Raised(error)


@dataclass(frozen=True, slots=True)
class _Raised:
    """What the function raised, kept apart from what this module raises, TimeoutError above all."""

    error: BaseException


class _CallFailure(Exception):  # noqa: N818 - it is not an error of the program
    def __init__(self, score: Score) -> None:
        super().__init__(score)
        self.score = score


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - of an object with an async __call__
    )
