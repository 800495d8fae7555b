"""The load generator: a process that sends calls and writes down when each was due and done.

It uses bare gRPC, not the client SDK, whose retries would hide refused calls.

Closed loop: each of N slots sends its next call when the last one is answered. Open loop: calls are
due at the times of a Poisson process, whatever the server does, and a call's latency counts from
when it was due, not from when the generator came round to it (otherwise a stalled server would be
measured only by the few calls that happened to be sent before it stalled).

Times are of the monotonic clock, which all processes of a Linux machine share.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from rewardsvc.bench.workload import Call
from rewardsvc.policy_client.client.channels import (
    call_metadata,
    channel_credentials,
    channel_options,
)
from rewardsvc.policy_client.client.settings import ClientSettings
from rewardsvc.v1 import reward_pb2 as pb

OUTCOME = np.dtype(
    [
        ("due", "f8"),
        ("done", "f8"),
        ("status", "i2"),
        ("samples", "i4"),
        ("item_errors", "i4"),
        ("tokens", "i8"),
    ]
)
"""A call: when it was due and done, its gRPC status code, its samples, how many of them came back
with an error of their own, and its tokens if they are known."""

Outcomes = NDArray[np.void]

SCORE = "/rewardsvc.v1.RewardService/Score"
SCORE_STREAM = "/rewardsvc.v1.RewardService/ScoreStream"

MAX_OUTSTANDING = 8192
"""Calls of one process in the open loop. Beyond it, calls wait to be sent, and are measured from
when they were due all the same."""

CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one process does.

    Attributes:
        settings: Where to, with which key.
        calls: Sent in turn, again from the start after the last.
        start: When the load starts, on the monotonic clock.
        stop: After this nothing is sent any more.
        concurrency: Slots of the closed loop; 0 for the open loop.
        rate: Calls a second of the open loop.
        stream: Whether calls go as messages of one ScoreStream.
        timeout_s: Of one call.
        seed: Of the times at which calls are due.
    """

    settings: ClientSettings
    calls: Sequence[Call]
    start: float
    stop: float
    concurrency: int = 0
    rate: float = 0.0
    stream: bool = False
    timeout_s: float = 60.0
    seed: int = 0


class Transport(Protocol):
    """A way to make a call."""

    async def __call__(self, call: Call) -> tuple[int, int]:
        """Makes it; returns the gRPC status code and the number of samples with errors."""


def generate(load: Load) -> Outcomes:
    """Runs the load to its end, in an event loop of its own."""
    return asyncio.run(_generate(load))


async def _generate(load: Load) -> Outcomes:
    rows: list[tuple[float, float, int, int, int, int]] = []
    transport = _streaming if load.stream else _unary
    async with transport(load) as send:

        async def make(call: Call, due: float) -> None:
            try:
                async with asyncio.timeout(load.timeout_s):
                    status, item_errors = await send(call)
            except TimeoutError:
                status, item_errors = grpc.StatusCode.DEADLINE_EXCEEDED.value[0], 0
            done = time.monotonic()
            rows.append((due, done, status, call.num_samples, item_errors, call.num_tokens))

        await _sleep_until(load.start)
        endless = itertools.cycle(load.calls)
        if load.concurrency:
            slots = (_slot(load, endless, make) for _ in range(load.concurrency))
            await asyncio.gather(*slots)
        else:
            await _open_loop(load, endless, make)
    return np.asarray(rows, OUTCOME)


async def _slot(load: Load, calls: Iterator[Call], make: Any) -> None:
    while (now := time.monotonic()) < load.stop:
        await make(next(calls), now)


async def _open_loop(load: Load, calls: Iterator[Call], make: Any) -> None:
    rng = np.random.default_rng(load.seed)
    room = asyncio.Semaphore(MAX_OUTSTANDING)
    due = load.start

    async with asyncio.TaskGroup() as tasks:

        async def one(call: Call, when: float) -> None:
            try:
                await make(call, when)
            finally:
                room.release()

        while (due := due + rng.exponential(1 / load.rate)) < load.stop:
            await _sleep_until(due)
            await room.acquire()
            tasks.create_task(one(next(calls), due))


async def _sleep_until(when: float) -> None:
    # At least once round the event loop: a generator that is behind must still read its answers.
    await asyncio.sleep(max(0.0, when - time.monotonic()))


@asynccontextmanager
async def _channel(load: Load) -> AsyncIterator[grpc.aio.Channel]:
    address, options = load.settings.addresses[0], channel_options(load.settings)
    if load.settings.tls is None:
        channel = grpc.aio.insecure_channel(address, options)
    else:
        credentials = channel_credentials(load.settings.tls)
        channel = grpc.aio.secure_channel(address, credentials, options)
    async with channel:
        await asyncio.wait_for(channel.channel_ready(), CONNECT_TIMEOUT_S)
        yield channel


@asynccontextmanager
async def _unary(load: Load) -> AsyncIterator[Transport]:
    metadata = call_metadata(load.settings)
    async with _channel(load) as channel:
        score: Any = channel.unary_unary(
            SCORE,
            request_serializer=None,
            response_deserializer=pb.ScoreResponse.FromString,
        )

        async def send(call: Call) -> tuple[int, int]:
            try:
                reply = await score(call.request, timeout=load.timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code().value[0], 0
            return 0, _num_errors(reply.batch)

        yield send


@asynccontextmanager
async def _streaming(load: Load) -> AsyncIterator[Transport]:
    """One stream for all calls of the process; answers are told apart by their samples' ids."""
    metadata = call_metadata(load.settings)
    outgoing: asyncio.Queue[pb.ScoreStreamRequest | None] = asyncio.Queue()
    waiting: dict[str, _Message] = {}
    numbers = itertools.count()

    async def requests() -> AsyncIterator[pb.ScoreStreamRequest]:
        while (message := await outgoing.get()) is not None:
            yield message

    async with _channel(load) as channel:
        open_stream = channel.stream_stream(
            SCORE_STREAM,
            request_serializer=pb.ScoreStreamRequest.SerializeToString,
            response_deserializer=pb.ScoreStreamResponse.FromString,
        )
        stream = open_stream(requests(), metadata=metadata)
        ended: list[int] = []

        async def read() -> None:
            status = 0
            try:
                async for reply in stream:
                    _answer(reply, waiting)
            except grpc.aio.AioRpcError as error:
                status = error.code().value[0]
            ended.append(status)
            for message in waiting.values():
                message.end(status or grpc.StatusCode.UNAVAILABLE.value[0])

        async def send(call: Call) -> tuple[int, int]:
            if ended:
                await asyncio.sleep(0.01)  # a stream that broke must not make its slots spin
                return ended[0] or grpc.StatusCode.UNAVAILABLE.value[0], 0
            request = pb.ScoreStreamRequest.FromString(call.request)
            message = _Message(call.num_samples)
            ids = [str(next(numbers)) for _ in request.samples]
            for sample, key in zip(request.samples, ids, strict=True):
                sample.id = key
                waiting[key] = message
            outgoing.put_nowait(request)
            try:
                return await message.done
            finally:
                for key in ids:
                    waiting.pop(key, None)

        reader = asyncio.create_task(read())
        try:
            yield send
        finally:
            outgoing.put_nowait(None)
            await asyncio.wait({reader}, timeout=1.0)
            stream.cancel()
            reader.cancel()


class _Message:
    """One message's samples on a stream."""

    def __init__(self, num_samples: int) -> None:
        self.done: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._left = num_samples
        self._num_errors = 0

    def answered(self, num_samples: int, num_errors: int) -> None:
        """So many of its samples came back."""
        self._left -= num_samples
        self._num_errors += num_errors
        if self._left <= 0:
            self.end(0)

    def end(self, status: int) -> None:
        """It is over."""
        if not self.done.done():
            self.done.set_result((status, self._num_errors))


def _answer(reply: pb.ScoreStreamResponse, waiting: dict[str, _Message]) -> None:
    failed = {d.index for d in reply.batch.details if d.HasField("error")}
    for index, key in enumerate(reply.ids):
        message = waiting.pop(key, None)
        if message is not None:
            message.answered(1, int(index in failed))


def _num_errors(batch: pb.ScoreBatch) -> int:
    return sum(detail.HasField("error") for detail in batch.details)
