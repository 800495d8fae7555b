"""The asyncio driver of a stream: the same shape as the blocking one, with tasks for threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import grpc

from rewardsvc.policy_client.client.channels import rpc_failure
from rewardsvc.policy_client.client.stream import (
    Answer,
    Ended,
    Event,
    Fed,
    Received,
    SourceEnded,
    StreamState,
)
from rewardsvc.policy_client.client.types import ScoreItem

# How long to wait for the server's goodbye after the last answer.
_LINGER_S = 1.0

Samples = AsyncIterable[ScoreItem | Mapping[str, Any]] | Iterable[ScoreItem | Mapping[str, Any]]
OpenStream = Callable[[str, AsyncIterator[Any]], Any]
"""(address, requests) → the RPC."""


async def run_stream(
    state: StreamState, samples: Samples, window: int, open_stream: OpenStream
) -> AsyncIterator[Answer]:
    """Yields answers as they come, with at most `window` samples on their way."""
    events: asyncio.Queue[Event] = asyncio.Queue()
    slots = asyncio.Semaphore(window)
    feeder = asyncio.create_task(_feed(samples, slots, events), name="score-stream-feeder")
    connection: _Connection | None = None
    try:
        while not state.finished:
            now = time.monotonic()
            address = state.connect_to(now)
            if address is not None:
                connection = _Connection(open_stream, address, events)
            for message in state.messages(now):
                assert connection is not None
                connection.send(message)
            try:
                async with asyncio.timeout(state.wait_s(now)):
                    event = await events.get()
            except TimeoutError:
                answers = state.expired(time.monotonic())
            else:
                answers = state.handle(event, time.monotonic())
            for answer in answers:
                yield answer
                slots.release()
        if connection is not None and state.connected:
            await connection.finish()
    finally:
        feeder.cancel()
        if connection is not None:
            connection.cancel()
        state.closed()


async def _feed(samples: Samples, slots: asyncio.Semaphore, events: asyncio.Queue[Event]) -> None:
    """Runs the caller's iterable, never more than a window ahead of the answers."""
    try:
        source = samples if isinstance(samples, AsyncIterable) else _as_async(samples)
        iterator = aiter(source)
        while True:
            await slots.acquire()
            try:
                item = await anext(iterator)
            except StopAsyncIteration:
                break
            events.put_nowait(Fed(item))
    except Exception as error:  # handed to the caller's task, whatever it is
        events.put_nowait(SourceEnded(error))
    else:
        events.put_nowait(SourceEnded())


async def _as_async(
    samples: Iterable[ScoreItem | Mapping[str, Any]],
) -> AsyncIterator[ScoreItem | Mapping[str, Any]]:
    for sample in samples:
        yield sample


class _Connection:
    """One RPC: a queue of requests, and a task that turns replies into events."""

    def __init__(self, open_stream: OpenStream, address: str, events: asyncio.Queue[Event]) -> None:
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._call = open_stream(address, self._outgoing())
        self._events = events
        self._reader = asyncio.create_task(self._read(), name="score-stream-reader")

    def send(self, message: Any) -> None:
        """Queues a message."""
        self._requests.put_nowait(message)

    async def finish(self) -> None:
        """Half-closes and lets the server end the stream; nothing depends on it any more."""
        self._requests.put_nowait(None)
        await asyncio.wait({self._reader}, timeout=_LINGER_S)

    def cancel(self) -> None:
        """Ends the RPC and the task; harmless if they have ended."""
        self._call.cancel()
        self._reader.cancel()

    async def _outgoing(self) -> AsyncIterator[Any]:
        while (message := await self._requests.get()) is not None:
            yield message

    async def _read(self) -> None:
        failure = None
        try:
            async for response in self._call:
                self._events.put_nowait(Received(response))
        except grpc.aio.AioRpcError as error:
            failure = rpc_failure(error.code(), error.details(), error.trailing_metadata())
        except asyncio.CancelledError:
            # The call was cancelled under the task (the client was closed), or the task itself.
            failure = rpc_failure(grpc.StatusCode.CANCELLED, "the client was closed", None)
        self._events.put_nowait(Ended(failure))
