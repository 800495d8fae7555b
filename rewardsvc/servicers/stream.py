"""One ScoreStream: a reader that starts work, a window that bounds it, answers as they are ready.

Each request message is scored by a task of its own. The reader stops reading while the window is
full, which reaches the client as gRPC flow control. Whatever ends the session (half-close, an
error, the caller's cancellation, a drain) ends with no task left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from rewardsvc.convert import batch_to_proto
from rewardsvc.errors import (
    DeadlinePassedError,
    InvalidRequestError,
    ItemErrorCode,
    NotServingError,
    QueueFullError,
    ScorerUnusableError,
    ServiceError,
    UnknownScorerError,
)
from rewardsvc.scoring.context import CallContext, call_context, current_call
from rewardsvc.scoring.slot import Slot
from rewardsvc.scoring.types import Score
from rewardsvc.servicers.gate import Gate
from rewardsvc.servicers.guard import checked_priority
from rewardsvc.servicers.identity import Caller
from rewardsvc.servicers.messages import score_messages
from rewardsvc.v1 import reward_pb2 as pb

ITEM_CODE_OF: dict[type[ServiceError], tuple[ItemErrorCode, bool]] = {
    UnknownScorerError: (ItemErrorCode.UNKNOWN_SCORER, False),
    ScorerUnusableError: (ItemErrorCode.SCORER_UNUSABLE, False),
    InvalidRequestError: (ItemErrorCode.INVALID_SAMPLE, False),
    QueueFullError: (ItemErrorCode.QUEUE_FULL, True),
    NotServingError: (ItemErrorCode.UNAVAILABLE, True),
    DeadlinePassedError: (ItemErrorCode.DEADLINE_EXCEEDED, True),
}
"""Call-level failures of one message become errors of its samples; (code, retryable)."""


class ScoreStreamSession:
    """The state of one stream."""

    def __init__(
        self, find: Callable[[str], Slot], gate: Gate, caller: Caller, *, max_in_flight: int
    ) -> None:
        """Starts with nothing in flight.

        Args:
            find: Gives the slot of a name, or raises a `ServiceError`.
            gate: Tells when the server drains.
            caller: Whose stream it is.
            max_in_flight: Samples that may be in flight before the reader waits.
        """
        self._find = find
        self._gate = gate
        self._caller = caller
        self._max_in_flight = max_in_flight
        self._half_closed = False
        self._in_flight: set[str] = set()
        self._room = asyncio.Condition()
        self._answers: asyncio.Queue[pb.ScoreStreamResponse | BaseException | None] = (
            asyncio.Queue()
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self, requests: AsyncIterator[tuple[pb.ScoreStreamRequest, dict[int, str]]]
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Answers until the client has half-closed and every sample is answered.

        Raises:
            InvalidRequestError: If an id is empty or already in flight.
            NotServingError: If the server drains; samples in flight are answered first.
        """
        reader = asyncio.create_task(self._read(requests))
        watcher = asyncio.create_task(self._gate.draining.wait())
        try:
            while True:
                get = asyncio.create_task(self._answers.get())
                try:
                    await asyncio.wait({get, watcher}, return_when=asyncio.FIRST_COMPLETED)
                    if watcher.done() and not self._half_closed:
                        reader.cancel()
                        await asyncio.wait({reader})
                        self._answers.put_nowait(NotServingError("the server is draining"))
                    answer = await get
                finally:
                    get.cancel()
                if answer is None:
                    return
                if isinstance(answer, BaseException):
                    await self._finish_in_flight()
                    while not self._answers.empty():
                        late = self._answers.get_nowait()
                        if isinstance(late, pb.ScoreStreamResponse):
                            yield late
                    raise answer
                yield answer
        finally:
            left = [reader, watcher, *self._tasks]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _finish_in_flight(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _read(
        self, requests: AsyncIterator[tuple[pb.ScoreStreamRequest, dict[int, str]]]
    ) -> None:
        try:
            async for request, bad in requests:
                ids = self._admit(request)
                await self._wait_for_room(len(ids))
                self._in_flight.update(ids)
                task = asyncio.create_task(self._score(request, bad, ids))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self._half_closed = True
            await self._finish_in_flight()
            self._answers.put_nowait(None)
        except Exception as error:
            self._answers.put_nowait(error)

    def _admit(self, request: pb.ScoreStreamRequest) -> list[str]:
        ids = [sample.id for sample in request.samples]
        if not all(ids):
            raise InvalidRequestError(f"samples[{ids.index('')}].id: empty; a stream needs ids")
        seen = set(self._in_flight)
        for index, name in enumerate(ids):
            if name in seen:
                raise InvalidRequestError(
                    f"samples[{index}].id: {name!r} is already in flight on this stream"
                )
            seen.add(name)
        return ids

    async def _wait_for_room(self, wanted: int) -> None:
        def has_room() -> bool:
            return not self._in_flight or len(self._in_flight) + wanted <= self._max_in_flight

        async with self._room:
            await self._room.wait_for(has_room)

    async def _score(
        self, request: pb.ScoreStreamRequest, bad: dict[int, str], ids: list[str]
    ) -> None:
        try:
            call = CallContext(
                deadline=current_call().deadline,
                priority=checked_priority(request.priority),
                client_id=self._caller.client(request.client_id),
            )
            with call_context(call):
                slot = self._find(request.scorer)
                batch = await score_messages(slot, request.samples, bad)
            answer: Any = pb.ScoreStreamResponse(ids=ids, batch=batch)
        except ServiceError as error:
            found = (ITEM_CODE_OF[cls] for cls in type(error).__mro__ if cls in ITEM_CODE_OF)
            code, retryable = next(found, (ItemErrorCode.INTERNAL, False))
            score = Score.failed(code, str(error), retryable=retryable)
            answer = pb.ScoreStreamResponse(ids=ids, batch=batch_to_proto([score] * len(ids), ""))
        except Exception as error:
            answer = error
        async with self._room:
            self._in_flight.difference_update(ids)
            self._answers.put_nowait(answer)
            self._room.notify_all()
