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
* The forward pass and the splitting of failed batches happen on the device's thread. Calls that are
  gone by the time it gets there are skipped.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import TypeVar

from rewardsvc.engine.device import Device
from rewardsvc.engine.isolate import run_isolated
from rewardsvc.engine.observe import BatchReport, EngineObserver
from rewardsvc.engine.queue import Entry, Ticket, WorkQueue
from rewardsvc.engine.settings import EngineSettings
from rewardsvc.engine.types import Answer, Backend, Encoded
from rewardsvc.errors import (
    DeadlinePassedError,
    ItemError,
    ItemErrorCode,
    ItemFailure,
    NotServingError,
)
from rewardsvc.scoring.context import current_call

logger = logging.getLogger(__name__)

T = TypeVar("T")

ENCODE_CHUNK = 128
"""Samples per job of a tokenizer thread: long enough to be worth the hand-over."""


@dataclass(slots=True, eq=False)
class _Call:
    """One `submit` in progress; `done` is set by the last answer, or fails when closing."""

    ticket: Ticket
    answers: list[Answer | None]
    done: asyncio.Future[None]


@dataclass(slots=True, order=True)
class _Waiter:
    """Entries of one call that wait for room in the queue. Ordered like the queue itself."""

    key: tuple[int, float, int]
    entries: deque[Entry] = field(compare=False)
    entered: asyncio.Future[None] = field(compare=False)


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
            max_batch_tokens=settings.max_batch_tokens,
            max_tokens=settings.max_queue_tokens,
            max_items=settings.max_queue_items,
            patience_s=settings.patience_s,
        )
        self._calls: dict[Ticket, _Call] = {}
        self._waiters: list[_Waiter] = []
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
        ticket = self._queue.admit(len(inputs), call, tokens_full=self._tokens_full())
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
        loop = asyncio.get_running_loop()
        jobs: deque[tuple[int, asyncio.Future[list[Encoded | ItemError]]]] = deque()
        starts = iter(range(0, len(inputs), ENCODE_CHUNK))
        try:
            while not call.done.done():
                for start in itertools.islice(starts, self._encode_ahead - len(jobs)):
                    chunk = inputs[start : start + ENCODE_CHUNK]
                    work = partial(_encode_chunk, chunk, encode)
                    jobs.append((start, loop.run_in_executor(self._encoders, work)))
                if not jobs:
                    return
                start, job = jobs.popleft()
                encoded = await job
                if not call.done.done():  # closing may have failed the call meanwhile
                    await self._enter(call, start, encoded)
        finally:
            for _, job in jobs:
                job.cancel()

    async def _enter(self, call: _Call, start: int, encoded: Sequence[Encoded | ItemError]) -> None:
        """Answers what could not be encoded and puts the rest in the queue as room frees."""
        now = time.monotonic()
        entries: deque[Entry] = deque()
        for index, item in enumerate(encoded, start):
            if isinstance(item, ItemError):
                self._answer(call.ticket, index, item)
            else:
                entries.append(self._queue.entry(call.ticket, index, item, now))
        if not entries:
            return
        entered = asyncio.get_running_loop().create_future()
        heappush(self._waiters, _Waiter(entries[0].key, entries, entered))
        self._let_in()
        self._start_serving()
        await entered

    def _tokens_full(self) -> bool:
        return any(not waiter.entered.done() for waiter in self._waiters)

    def _let_in(self) -> None:
        """Moves waiting entries into the queue, most urgent call first, while there is room."""
        while self._waiters:
            waiter = self._waiters[0]
            while waiter.entries and not waiter.entered.done():
                entry = waiter.entries[0]
                if not self._queue.has_room(entry.cost):
                    self._queue_changed()
                    return
                self._queue.push(waiter.entries.popleft())
            heappop(self._waiters)
            if not waiter.entered.done():
                waiter.entered.set_result(None)
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
        if self._queue.discard(call.ticket) or self._waiters:
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

    def _next_batch(self) -> list[Entry]:
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
        for waiter in self._waiters:
            if not waiter.entered.done():
                waiter.entered.set_result(None)
        self._let_in()

    async def _compute(self, batch: list[Entry]) -> None:
        try:
            answers, report = await self._device.run(partial(self._forward, batch))
        except Exception as error:
            logger.exception("%s: a batch was lost", self._name)
            lost = ItemError(ItemErrorCode.INTERNAL, f"the batch was lost: {type(error).__name__}")
            answers, report = [lost for _ in batch], None
        finally:
            self._device.slots.release()
        for entry, answer in zip(batch, answers, strict=True):
            if answer is None:
                self._drop(entry.ticket)
            else:
                self._answer(entry.ticket, entry.index, answer)
        if report is not None:
            self._queue.observe_speed(report.num_tokens, report.forward_s)
            self._observer.batch_done(report)

    def _forward(self, batch: list[Entry]) -> tuple[Sequence[Answer | None], BatchReport | None]:
        """Computes what is still wanted, None for the rest; runs on the device's thread."""
        started = time.monotonic()
        live = [entry for entry in batch if entry.ticket.wants_answers(started)]
        backend = self._backend
        if not live or backend is None:
            return [None] * len(batch), None
        items = [entry.item for entry in live]
        computed = dict(
            zip(map(id, live), run_isolated(backend, items, model=self._name), strict=True)
        )
        report = BatchReport(
            model=self._name,
            num_items=len(live),
            num_tokens=sum(map(len, items)),
            num_computed_tokens=self._shape.num_computed_tokens(items),
            queue_wait_s=sum(started - entry.queued_at for entry in live) / len(live),
            forward_s=time.monotonic() - started,
        )
        return [computed.get(id(entry)) for entry in batch], report


def _encode_chunk(chunk: Sequence[T], encode: Callable[[T], Encoded]) -> list[Encoded | ItemError]:
    """Encodes each input; never raises."""
    encoded: list[Encoded | ItemError] = []
    for value in chunk:
        try:
            encoded.append(encode(value))
        except ItemFailure as failure:
            encoded.append(failure.error)
        except Exception as error:
            logger.exception("a sample could not be encoded")
            message = f"the sample could not be encoded: {type(error).__name__}"
            encoded.append(ItemError(ItemErrorCode.INTERNAL, message))
    return encoded
