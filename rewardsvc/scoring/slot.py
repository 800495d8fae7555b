"""A name, and the scorer that serves under it now.

Parents hold slots, not scorers, so a reload swaps one pointer: calls that began on the old scorer
finish on it, later ones take the new, and the old one is closed when its last call has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from rewardsvc.errors import ItemError, NotServingError, ScorerUnusableError
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.tokens import TokenScorer, TokenScores, TokenSequence
from rewardsvc.scoring.types import Sample, Score

log = logging.getLogger(__name__)
T = TypeVar("T")
A = TypeVar("A", Score, TokenScores)


class State(StrEnum):
    """The life of a scorer; names follow `ScorerState` in proto/rewardsvc/v1."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerInfo:
    """What is known of one scorer; `message` says why it failed, when it failed."""

    name: str
    type: str
    state: State
    version: str
    message: str = ""


class ScoringObserver(Protocol):
    """Told of every call to every scorer, nested ones included. Returns at once, never raises."""

    def answered(self, scorer: str, seconds: float, errors: Sequence[ItemError | None]) -> None:
        """A call was answered after so many seconds; each item's error, None where it has none."""

    def refused(self, scorer: str, error: Exception) -> None:
        """A call ended with an error."""


class Live:
    """A started scorer, and how many calls it is serving."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._num_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def use(self, work: Callable[[Scorer], Awaitable[T]]) -> T:
        """Runs `work` on the scorer, which stays open until it ends."""
        self._num_calls += 1
        self._idle.clear()
        try:
            return await work(self.scorer)
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self._idle.set()

    async def retire(self, timeout_s: float) -> None:
        """Waits for the calls in flight, then closes the scorer."""
        try:
            if self._num_calls:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            log.warning("closing a scorer with %d calls in flight", self._num_calls)
        finally:
            await self.scorer.close()


class Slot(TokenScorer):
    """A name, and the scorer that serves under it now. The registry changes what is inside."""

    def __init__(self, name: str, config: ScorerConfigBase, observer: ScoringObserver) -> None:
        self.name = name
        self.config = config
        self.state = State.LOADING
        self.message = ""
        self.live: Live | None = None
        self._observer = observer

    @property
    def version(self) -> str:
        """The version of the scorer inside; empty while there is none."""
        return self.live.scorer.version if self.live else ""

    @property
    def is_serving(self) -> bool:
        """Whether the scorer inside can answer now."""
        return self.live is not None and self.live.scorer.is_serving

    @property
    def notice(self) -> str:
        """What the scorer inside has to say."""
        return self.live.scorer.notice if self.live else ""

    @property
    def info(self) -> ScorerInfo:
        """What is known of it now. One that is loaded and cannot answer is LOADING: it will."""
        is_down = self.state is State.READY and not self.is_serving
        return ScorerInfo(
            name=self.name,
            type=self.config.type,
            state=State.LOADING if is_down else self.state,
            version=self.version,
            message=self.message or self.notice,
        )

    def require(self) -> Live:
        """What is inside.

        Raises:
            ScorerUnusableError: If it failed to load.
            NotServingError: If it is still loading, or being unloaded.
        """
        if self.live is not None:
            return self.live
        if self.state is State.FAILED:
            raise ScorerUnusableError(f"scorer {self.name!r} failed to load: {self.message}")
        raise NotServingError(f"scorer {self.name!r} is {self.state}; try again later")

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Scores with the scorer inside; see `Scorer.score`."""
        return (await self.score_versioned(samples))[0]

    async def score_versioned(self, samples: Sequence[Sample]) -> tuple[list[Score], str]:
        """Scores, and the version of the scorer that did it.

        Raises:
            RuntimeError: If the scorer breaks its contract of as many scores as samples.
        """
        live = self.require()
        scores = await self._observed(live.use(lambda scorer: scorer.score(samples)), len(samples))
        return scores, live.scorer.version

    async def _observed(self, answering: Awaitable[list[A]], num_samples: int) -> list[A]:
        """The answers, one a sample; the observer is told of them, or of why there are none."""
        started = time.perf_counter()
        try:
            answers = await answering
            if len(answers) != num_samples:
                raise RuntimeError(
                    f"scorer {self.name!r} gave {len(answers)} scores for {num_samples} samples"
                )
        except Exception as error:
            self._observer.refused(self.name, error)
            raise
        seconds = time.perf_counter() - started
        self._observer.answered(self.name, seconds, [answer.error for answer in answers])
        return answers

    async def token_logprobs(
        self, sequences: Sequence[TokenSequence], *, temperature: float = 1.0, entropy: bool = False
    ) -> list[TokenScores]:
        """Log-probs from the model inside; see `TokenScorer.token_logprobs`.

        Raises:
            ScorerUnusableError: If what is inside is not a causal language model.
        """
        return (await self.token_logprobs_versioned(sequences, temperature, entropy))[0]

    async def token_logprobs_versioned(
        self, sequences: Sequence[TokenSequence], temperature: float, entropy: bool
    ) -> tuple[list[TokenScores], str]:
        """Log-probs, and the version of the model that gave them."""
        live = self.require()
        scorer = live.scorer
        if not isinstance(scorer, TokenScorer):
            raise ScorerUnusableError(
                f"scorer {self.name!r} is of type {self.config.type!r}, which gives no log-probs; "
                "name one of type 'causal_lm'"
            )
        answering = live.use(
            lambda _: scorer.token_logprobs(sequences, temperature=temperature, entropy=entropy)
        )
        return await self._observed(answering, len(sequences)), scorer.version
