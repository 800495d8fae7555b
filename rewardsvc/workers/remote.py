"""A model scorer whose model is in worker processes."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc

from rewardsvc.errors import (
    ConfigError,
    DeadlinePassedError,
    InvalidRequestError,
    ItemErrorCode,
    NotServingError,
    QueueFullError,
    ScorerUnusableError,
    ServiceError,
)
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.combinators.base import gather_or_cancel
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.context import current_call
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.tokens import TokenScorer, TokenScores, TokenSequence
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.servicers.guard import RETRY_DELAY_KEY
from rewardsvc.v1 import reward_pb2 as pb
from rewardsvc.workers.dispatch import Part, divide
from rewardsvc.workers.process import Worker
from rewardsvc.workers.wire import (
    sample_to_proto,
    scores_from_proto,
    sequence_to_proto,
    token_scores_from_proto,
)

log = logging.getLogger(__name__)
A = TypeVar("A")

NUM_TRIES = 2
"""A part whose worker is lost is computed once more, elsewhere: scoring twice harms nobody. A
sample that takes the second worker down as well must not go on to the next."""

UNKNOWN_RETRY_MS = 1000

INDEPENDENT = ("orm", "prm", "causal_lm")
"""Types that score each sample on its own. Others may compare the completions of a prompt."""

GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.CANCELLED)
"""What is said by, or of, a worker that goes, is gone, or has just come back empty."""


class RemoteScorer(Scorer):
    """Sends samples to the least loaded workers and puts their answers together.

    Args:
        config: The model's section.
        env: The surroundings.
        model: What the model is called on the workers.
        workers: One for each entry of `config.worker_devices()`, with the device it loads on.
        released: Called when the workers are not needed by this scorer any more.
    """

    Config = ScorerConfigBase

    def __init__(
        self,
        config: ScorerConfigBase,
        env: BuildEnv,
        *,
        model: str,
        workers: Sequence[tuple[Worker, str]],
        released: Callable[[], Awaitable[None]],
    ) -> None:
        self._config = config
        self._name = env.name
        self._model = model
        self._placed = workers
        self._released = released
        self._version = ""
        self._workers = [worker for worker, _ in workers]

    @property
    def version(self) -> str:
        """The model's, which is the same on all workers."""
        return self._version

    @property
    def is_serving(self) -> bool:
        """Whether at least one worker can be asked."""
        return any(worker.serves(self._model) for worker in self._workers)

    @property
    def notice(self) -> str:
        """How many workers serve, if it is not all of them, and why."""
        num_up = sum(worker.serves(self._model) for worker in self._workers)
        if num_up == len(self._workers):
            return ""
        placed = [(worker.name, worker.placement(self._model)) for worker in self._workers]
        troubles = [f"{name}: {p.trouble}" for name, p in placed if p is not None and p.trouble]
        return "; ".join([f"{num_up} of {len(self._workers)} workers serve", *troubles])

    async def start(self) -> None:
        """Loads the model on every worker.

        Raises:
            ConfigError: If it cannot be loaded, or is not the same everywhere.
            NotServingError: If a worker does not come up.
        """
        loading = [
            worker.load(self._model, self._config.on_worker(device))
            for worker, device in self._placed
        ]
        versions = await gather_or_cancel(loading)
        if len(set(versions)) > 1:
            raise ConfigError(
                f"model: the checkpoint changed while it was loaded: {', '.join(versions)}; "
                "reload when it is written"
            )
        self._version = versions[0]

    async def close(self) -> None:
        """Takes the model off the workers."""
        await asyncio.gather(*(worker.unload(self._model) for worker in self._workers))
        await self._released()

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """See `Scorer.score`. Numbers come as float32, whatever the scorer computed in."""
        messages, bad = [], {}
        for index, sample in enumerate(samples):
            try:
                messages.append(sample_to_proto(sample))
            except UnicodeEncodeError as error:
                messages.append(pb.Sample())
                bad[index] = Score.failed(
                    ItemErrorCode.INVALID_SAMPLE, f"the text is not valid Unicode: {error}"
                )

        async def ask(worker: Worker, indices: Sequence[int]) -> list[Score]:
            call = current_call()
            request = pb.ScoreRequest(
                scorer=self._model,
                samples=[messages[i] for i in indices],
                priority=call.priority,
                client_id=call.client_id,
            )
            reply = await worker.rewards.Score(request, timeout=_timeout_s())
            return scores_from_proto(reply.batch)

        good = [i for i in range(len(samples)) if i not in bad]
        answers = await self._divided([samples[i] for i in good], good, ask)
        return [bad[i] if i in bad else answers[i] for i in range(len(samples))]

    async def _divided(
        self,
        items: Sequence[Sample] | Sequence[TokenSequence],
        indices: Sequence[int],
        ask: Callable[[Worker, Sequence[int]], Awaitable[list[A]]],
    ) -> dict[int, A]:
        """Answers by index, from all workers that were asked."""
        if not items:
            return {}
        split_groups = self._config.type in INDEPENDENT
        parts = divide(items, self._serving(), split_groups=split_groups)
        for part in parts:
            part.indices = [indices[i] for i in part.indices]
        answers: dict[int, A] = {}
        for part, found in zip(
            parts, await gather_or_cancel([self._asked(part, ask) for part in parts]), strict=True
        ):
            answers.update(zip(part.indices, found, strict=True))
        return answers

    def _serving(self, *, but: Sequence[Worker] = ()) -> list[Worker]:
        serving = [w for w in self._workers if w.serves(self._model) and w not in but]
        if not serving:
            raise NotServingError(f"{self._name}: {self.notice or 'no other worker'}; try again")
        return serving

    async def _asked(
        self, part: Part, ask: Callable[[Worker, Sequence[int]], Awaitable[list[A]]]
    ) -> list[A]:
        """What a part's worker answers, or another one if that one is lost."""
        tried: list[Worker] = []
        while True:
            worker = part.worker
            tried.append(worker)
            worker.outstanding += part.cost
            try:
                return await ask(worker, part.indices)
            except grpc.aio.AioRpcError as error:
                if error.code() not in GONE:
                    raise _call_error(error) from None
                reason = error.details()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # What grpc raises as well for calls on a channel that is closed under them.
                reason = "the channel was closed"
            finally:
                worker.outstanding -= part.cost
            log.warning("%s: worker %s was lost: %s", self._name, worker.name, reason)
            if len(tried) == NUM_TRIES:
                raise NotServingError(
                    f"{self._name}: {NUM_TRIES} workers were lost while they computed this call"
                )
            part.worker = min(self._serving(but=tried), key=lambda w: w.outstanding)


class RemoteTokenScorer(RemoteScorer, TokenScorer):
    """The same for models that give log-probs of tokens."""

    async def token_logprobs(
        self, sequences: Sequence[TokenSequence], *, temperature: float = 1.0, entropy: bool = False
    ) -> list[TokenScores]:
        """See `TokenScorer.token_logprobs`."""

        async def ask(worker: Worker, indices: Sequence[int]) -> list[TokenScores]:
            call = current_call()
            asked = [sequences[i] for i in indices]
            request = pb.TokenLogProbsRequest(
                scorer=self._model,
                sequences=map(sequence_to_proto, asked),
                temperature=temperature,
                entropy=entropy,
                priority=call.priority,
                client_id=call.client_id,
            )
            reply = await worker.rewards.TokenLogProbs(request, timeout=_timeout_s())
            return token_scores_from_proto(reply, asked)

        answers = await self._divided(sequences, range(len(sequences)), ask)
        return [answers[i] for i in range(len(sequences))]


def _timeout_s() -> float | None:
    left_s = current_call().seconds_left()
    return None if math.isinf(left_s) else max(0.0, left_s)


def _call_error(error: grpc.aio.AioRpcError) -> Exception:
    """The error that the worker raised; the other direction of the table in `rewardsvc.errors`."""
    details = str(error.details())
    known: dict[grpc.StatusCode, type[ServiceError]] = {
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlinePassedError,
        grpc.StatusCode.FAILED_PRECONDITION: ScorerUnusableError,
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    }
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        metadata: Any = error.trailing_metadata()
        delays = [int(value) for key, value in metadata or () if key == RETRY_DELAY_KEY]
        return QueueFullError(details, retry_delay_ms=delays[0] if delays else UNKNOWN_RETRY_MS)
    if error.code() in known:
        return known[error.code()](details)
    return RuntimeError(f"a worker said {error.code().name}: {details}")
