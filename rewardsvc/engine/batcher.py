"""The asynchronous side of one model: calls in, batches out.

Theory of operation. The event loop owns all state here; `WorkQueue` decides what is admitted and
what comes next, and nothing else holds items back or lets them through.

* `submit` is one call. It is admitted, encoded in chunks on the tokenizer threads, a few
  chunks ahead, and its items enter the queue as room frees. Then it waits for its last answer.
  Whatever ends it early (deadline, cancellation, closing) closes its ticket, which takes its items
  out of the queue.
* `_serve` is one task per model. It waits for work and for a slot of the device, and only then
  takes a batch out, so that the order is settled as late as possible. The device has one slot more
  than it computes with, so the next batch stands ready while one is computed.
* The forward pass and the splitting of failed batches happen on the device's thread. What nobody
  waits for any more by the time it gets there is skipped.
* An item that is known to the cache is answered at once; one that is in flight already waits for
  that answer. Both count for admission like any other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from rewardsvc.engine.device import Device
from rewardsvc.engine.encode import Ready, encoded_ahead
from rewardsvc.engine.entrance import Entrance
from rewardsvc.engine.isolate import run_isolated
from rewardsvc.engine.observe import BatchReport, EngineObserver, Reuse
from rewardsvc.engine.queue import WorkQueue
from rewardsvc.engine.reuse import AnswerCache, CacheSettings
from rewardsvc.engine.settings import EngineSettings
from rewardsvc.engine.types import Answer, Backend, Encoded
from rewardsvc.engine.work import Entry, Ticket, Work
from rewardsvc.errors import (
    DeadlinePassedError,
    ItemError,
    ItemErrorCode,
    NotServingError,
)
from rewardsvc.scoring.context import current_call

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Call:
    """One `submit` in progress; `done` is set by the last answer, or fails when closing."""

    ticket: Ticket
    answers: list[Answer | None]
    done: asyncio.Future[None]


class Batcher:
    """A model's queue and the task that serves it. Made by `EngineHost.add_model`."""

    def __init__(
        self,
        name: str,
        backend: Backend,
        *,
        device: Device,
        encoders: ThreadPoolExecutor,
        settings: EngineSettings,
        observer: EngineObserver,
        cache: CacheSettings | None = None,
    ) -> None:
        self._name = name
        self._backend: Backend | None = backend
        self._shape = backend.shape
        self._device = device
        self._encoders = encoders
        self._encode_ahead = settings.tokenizer_threads
        self._drain_s = settings.drain_s
        self._observer = observer
        self._queue = WorkQueue(
            backend.shape,
            max_batch_tokens=settings.batch_tokens(device.name),
            max_tokens=settings.max_queue_tokens,
            max_items=settings.max_queue_items,
            patience_s=settings.patience_s,
            client_weights=settings.client_weights,
        )
        self._entrance = Entrance(self._queue)
        self._cache = AnswerCache(cache) if cache is not None else None
        self._calls: dict[Ticket, _Call] = {}
        self._has_work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._server: asyncio.Task[None] | None = None
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def device(self) -> str:
        """Full name of the device that the model is on."""
        return self._device.name

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closing

    @property
    def load(self) -> int:
        """What the calls in progress count against `max_queue_items`."""
        return self._queue.load

    @property
    def num_waiting(self) -> int:
        """Samples that wait in the queue."""
        return self._queue.num_items

    @property
    def num_batches(self) -> int:
        """Batches that have left the queue and are not computed yet."""
        return len(self._batches)

    async def submit(self, inputs: Sequence[T], encode: Callable[[T], Encoded]) -> list[Answer]:
        """Answers each input, in order. Deadline and priority are those of `current_call()`.

        Args:
            inputs: What to compute.
            encode: Makes an input ready; called on tokenizer threads, several at a time. An
                `ItemFailure` becomes that input's answer.

        Raises:
            QueueFullError: If the call does not fit; nothing of it was computed.
            DeadlinePassedError: When the call's deadline passes first.
            NotServingError: If the batcher is closed, or closes before the call is done.
        """
        call = current_call()
        if self._closing:
            raise self._closed_error()
        if not inputs:
            return []
        if call.seconds_left() <= 0:
            raise DeadlinePassedError(f"{self._name}: the deadline passed before the call began")
        ticket = self._queue.admit(len(inputs), call, waiting=self._entrance.clients())
        done = asyncio.get_running_loop().create_future()
        mine = self._calls[ticket] = _Call(ticket, [None] * len(inputs), done)
        self._idle.clear()
        limit = asyncio.timeout(None if call.deadline == float("inf") else call.seconds_left())
        try:
            async with limit:
                await self._feed(mine, inputs, encode)
                await done
        except TimeoutError:
            if limit.expired():
                raise self._deadline_error(mine) from None
            raise
        finally:
            self._forget(mine)
        answers = [answer for answer in mine.answers if answer is not None]
        assert len(answers) == len(inputs), "a call ended with samples unanswered"
        return answers

    async def close(self) -> None:
        """Refuses new calls, finishes those in flight for up to `drain_s`, and fails the rest."""
        self._closing = True
        try:
            async with asyncio.timeout(self._drain_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%s: closed with %d calls in flight", self._name, len(self._calls))
        self._fail_all(self._closed_error())
        if self._server is not None:
            self._server.cancel()
            await asyncio.gather(self._server, return_exceptions=True)
        backend, self._backend = self._backend, None
        if backend is not None:
            # Behind the batch that may still run there; nobody waits for either.
            self._device.run_detached(backend.close)

    def _closed_error(self) -> NotServingError:
        return NotServingError(f"{self._name} is being closed; retry, on another address if any")

    def _deadline_error(self, call: _Call) -> DeadlinePassedError:
        return DeadlinePassedError(
            f"{self._name}: the deadline passed with {call.ticket.num_unanswered} of "
            f"{len(call.answers)} samples not computed"
        )

    async def _feed(self, call: _Call, inputs: Sequence[T], encode: Callable[[T], Encoded]) -> None:
        encoded = encoded_ahead(inputs, encode, self._encoders, num_ahead=self._encode_ahead)
        async with aclosing(encoded) as chunks:
            async for start, ready in chunks:
                if call.done.done():  # closing has failed the call meanwhile
                    return
                await self._enter(call, start, ready)

    async def _enter(self, call: _Call, start: int, encoded: Sequence[Ready | ItemError]) -> None:
        """Answers what needs no computing and puts the rest in the queue as room frees."""
        now = time.monotonic()
        entries: deque[Entry] = deque()
        num_cached = cached_tokens = 0
        for index, ready in enumerate(encoded, start):
            if isinstance(ready, ItemError):
                self._answer(call.ticket, index, ready)
                continue
            known = self._cache.get(ready.key) if self._cache is not None else None
            if known is not None:
                num_cached += 1
                cached_tokens += len(ready.item)
                self._answer(call.ticket, index, known)
            else:
                entry = self._queue.entry(call.ticket, index, ready.item, now, ready.key)
                entries.append(entry)
        if num_cached:
            self._observer.reused(self._name, Reuse.CACHE, num_cached)
            self._observer.served(call.ticket.call.client_id, cached_tokens)
        if entries:
            await self._wait_for_room(entries)

    def _wait_for_room(self, entries: deque[Entry]) -> asyncio.Future[None]:
        """Puts entries of one call in the queue as room frees; done when the last is inside."""
        entered = self._entrance.bring(entries)
        self._let_in()
        self._start_serving()
        return entered

    def _let_in(self) -> None:
        """Moves waiting entries into the queue while there is room."""
        num_shared = self._entrance.let_in()
        if num_shared:
            self._observer.reused(self._name, Reuse.IN_FLIGHT, num_shared)
        self._queue_changed()

    def _queue_changed(self) -> None:
        if self._queue.num_items:
            self._has_work.set()
        else:
            self._has_work.clear()
        self._observer.queue_changed(self._name, self._queue.num_items, self._queue.num_tokens)

    def _forget(self, call: _Call) -> None:
        """Ends a call, answered or not; what it still has in the queue leaves it."""
        if self._calls.pop(call.ticket, None) is None:
            return
        if not call.done.cancel() and not call.done.cancelled():
            call.done.exception()  # marks it as seen: `submit` may end for another reason first
        if self._queue.discard(call.ticket) or self._entrance:
            self._let_in()
        if not self._calls:
            self._idle.set()

    def _answer(self, ticket: Ticket, index: int, answer: Answer) -> None:
        call = self._calls.get(ticket)
        if call is None:
            return
        assert call.answers[index] is None, "answered twice"
        call.answers[index] = answer
        self._queue.answered(ticket)
        if not ticket.num_unanswered and not call.done.done():
            call.done.set_result(None)

    def _drop(self, ticket: Ticket) -> None:
        """Ends the call of an entry that came up after its deadline, if its timer has not yet."""
        call = self._calls.get(ticket)
        if call is not None and not call.done.done():
            call.done.set_exception(self._deadline_error(call))

    def _start_serving(self) -> None:
        if self._server is None:
            self._server = asyncio.create_task(self._serve(), name=f"batcher-{self._name}")

    async def _serve(self) -> None:
        while True:
            await self._has_work.wait()
            await self._device.slots.acquire()
            try:
                batch = self._next_batch()
            except Exception as error:
                # A bug of the batch shape. Nothing is known of what it took out, so all calls fail.
                logger.exception("%s: no batch could be put together", self._name)
                self._fail_all(error)
                batch = []
            if not batch:
                self._device.slots.release()
                continue
            task = asyncio.create_task(self._compute(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    def _next_batch(self) -> list[Work]:
        taken = self._queue.take(time.monotonic())
        for entry in taken.dropped:
            self._drop(entry.ticket)
        self._let_in()
        return taken.batch

    def _fail_all(self, error: Exception) -> None:
        for call in list(self._calls.values()):
            if not call.done.done():
                call.done.set_exception(error)
            self._queue.discard(call.ticket)
        self._entrance.abandon()
        self._let_in()

    async def _compute(self, batch: list[Work]) -> None:
        try:
            answers, report = await self._device.run(partial(self._forward, batch))
        except Exception as error:
            logger.exception("%s: a batch was lost", self._name)
            lost = ItemError(ItemErrorCode.INTERNAL, f"the batch was lost: {type(error).__name__}")
            answers, report = [lost for _ in batch], None
        finally:
            self._device.slots.release()
        served: Counter[str] = Counter()
        for work, answer in zip(batch, answers, strict=True):
            self._deliver(work, answer, served)
        for client, num_tokens in served.items():
            self._observer.served(client, num_tokens)
        if report is not None:
            self._queue.observe_speed(report.num_tokens, report.forward_s)
            self._observer.batch_done(report)

    def _deliver(self, work: Work, answer: Answer | None, served: Counter[str]) -> None:
        """Gives everybody who waits for a computation what came of it; None: it was skipped.

        Adds the tokens of the answers to `served`, by client.
        """
        now = time.monotonic()
        for entry in self._queue.finish(work):
            if answer is not None:
                self._answer(entry.ticket, entry.index, answer)
                served[entry.client] += len(work.item)
            elif entry.ticket.wants_answers(now):
                # It came between the device thread's look at who waits and now.
                self._queue.again(entry)
                self._wait_for_room(deque([entry]))
            else:
                self._drop(entry.ticket)
        if self._cache is not None and work.key is not None and isinstance(answer, np.ndarray):
            self._cache.put(work.key, answer)

    def _forward(self, batch: list[Work]) -> tuple[Sequence[Answer | None], BatchReport | None]:
        """Computes what is still wanted, None for the rest; runs on the device's thread."""
        started = time.monotonic()
        live = [work for work in batch if work.is_wanted(started)]
        backend = self._backend
        if not live or backend is None:
            return [None] * len(batch), None
        items = [work.item for work in live]
        computed = dict(zip(live, run_isolated(backend, items, model=self._name), strict=True))
        report = BatchReport(
            model=self._name,
            num_items=len(live),
            num_tokens=sum(map(len, items)),
            num_computed_tokens=self._shape.num_computed_tokens(items),
            queue_wait_s=sum(started - work.claims[0].queued_at for work in live) / len(live),
            forward_s=time.monotonic() - started,
        )
        return [computed.get(work) for work in batch], report
