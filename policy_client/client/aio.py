"""The client for asyncio."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc

from rewardsvc.policy_client.client import aio_stream
from rewardsvc.policy_client.client.addresses import AddressPool
from rewardsvc.policy_client.client.base import ClientBase
from rewardsvc.policy_client.client.calls import InfoJob, LogProbsJob, ScoreJob
from rewardsvc.policy_client.client.channels import (
    call_metadata,
    channel_credentials,
    channel_options,
    rpc_failure,
)
from rewardsvc.policy_client.client.encode import build_items
from rewardsvc.policy_client.client.errors import Cancelled, DeadlineExceeded
from rewardsvc.policy_client.client.jobs import Attempt, Job
from rewardsvc.policy_client.client.logprobs import TokenLogProbs
from rewardsvc.policy_client.client.reward_function import AsyncRewardFunction, OnError
from rewardsvc.policy_client.client.scores import ItemScore, ScoreBatch
from rewardsvc.policy_client.client.server_info import ServerInfo, not_ready
from rewardsvc.policy_client.client.settings import ClientSettings
from rewardsvc.policy_client.client.stream import (
    DEFAULT_WINDOW,
    MAX_CONNECTION_AGE_S,
    StreamState,
    check_window,
)
from rewardsvc.policy_client.client.types import TextLike
from rewardsvc.v1.reward_pb2_grpc import RewardServiceStub

_POLL_S = 0.2


class AsyncRewardClient(ClientBase):
    """Calls a reward service from asyncio. Methods and arguments are those of `RewardClient`.

    Picklable, and usable from one event loop after another: connections belong to a loop, and a
    new loop opens new ones. A cancelled task cancels its RPCs. Close it, or use it as a context
    manager.

    Example:
        >>> async def rewards(prompts, completions):
        ...     async with AsyncRewardClient("localhost:50051") as client:
        ...         return (await client.score("rlvr", prompts, completions)).values
    """

    async def score(
        self,
        scorer: str,
        prompts: Sequence[TextLike],
        completions: Sequence[TextLike],
        *,
        answers: Sequence[str | None] | None = None,
        tests: Sequence[Any] | None = None,
        rubrics: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str] | None = None,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> ScoreBatch:
        """Scores N samples with one scorer; see `RewardClient.score`."""
        live = self._live()
        columns = {
            "answers": answers,
            "tests": tests,
            "rubrics": rubrics,
            "metadata": metadata,
            "ids": ids,
        }
        items = build_items(prompts, completions, columns)
        job = ScoreJob(self._env(live.pool, timeout_s, priority), scorer, items)
        await self._run(live, job)
        return job.result()

    def score_stream(
        self,
        scorer: str,
        samples: aio_stream.Samples,
        *,
        window: int = DEFAULT_WINDOW,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> AsyncIterator[tuple[str, ItemScore]]:
        """Scores samples as they come; see `RewardClient.score_stream`.

        `samples` may be an async iterable too. It runs in a task of its own.
        """
        live = self._live()
        state = StreamState(self._env(live.pool, timeout_s, priority), scorer)
        return aio_stream.run_stream(state, samples, check_window(window), live.open_stream)

    async def token_logprobs(
        self,
        scorer: str,
        prompt_ids: Sequence[Any],
        completion_ids: Sequence[Any],
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> TokenLogProbs:
        """Log-probs of given completion tokens; see `RewardClient.token_logprobs`."""
        live = self._live()
        env = self._env(live.pool, timeout_s, priority)
        sequences = (prompt_ids, completion_ids)
        job = LogProbsJob(env, scorer, sequences, temperature=temperature, entropy=entropy)
        await self._run(live, job)
        return job.result()

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """What a server of the service can do; see `RewardClient.server_info`."""
        live = self._live()
        job = InfoJob(self._env(live.pool, timeout_s))
        await self._run(live, job)
        return job.result()

    async def wait_until_ready(
        self, timeout_s: float | None = None, *, scorers: Sequence[str] = ()
    ) -> ServerInfo:
        """Waits until a server has its scorers loaded; see `RewardClient.wait_until_ready`."""
        env = self._env(self._live().pool, timeout_s)
        deadline = env.started_at + env.timeout_s
        waiting = ""
        while (left := deadline - time.monotonic()) > 0:
            info = await self.server_info(timeout_s=left)
            waiting = not_ready(info, scorers)
            if not waiting:
                return info
            await asyncio.sleep(min(_POLL_S, left))
        raise DeadlineExceeded(f"not ready within {env.timeout_s:g} s: {waiting}")

    def reward_function(
        self,
        scorer: str,
        *,
        answer_column: str | Sequence[str] | None = None,
        name: str | None = None,
        on_error: OnError = OnError.RAISE,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> AsyncRewardFunction:
        """A picklable coroutine function; see `RewardClient.reward_function`."""
        return AsyncRewardFunction(
            copy.copy(self),
            scorer,
            answer_column=answer_column,
            name=name,
            on_error=on_error,
            arguments={"timeout_s": timeout_s, "priority": priority},
        )

    async def close(self) -> None:
        """Closes the connections; calls under way end with `Cancelled`."""
        self._closed = True
        if self._connections is not None and self._connections.is_current():
            await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _init_from(self, settings: ClientSettings) -> None:
        super()._init_from(settings)
        self._connections: _Connections | None = None

    def _live(self) -> _Connections:
        """The connections of this process and event loop."""
        if self._closed:
            raise Cancelled("the client is closed; make a new one")
        if self._connections is None or not self._connections.is_current():
            self._connections = _Connections(self._settings)
        return self._connections

    async def _run(self, live: _Connections, job: Job) -> None:
        ended: asyncio.Queue[Attempt] = asyncio.Queue()
        in_flight: dict[Attempt, Any] = {}
        try:
            while True:
                for attempt in job.starts(time.monotonic()):
                    in_flight[attempt] = call = live.start(attempt)
                    call.add_done_callback(partial(_report, ended, attempt))
                if job.done:
                    break
                try:
                    async with asyncio.timeout(job.wait_s(time.monotonic())):
                        attempt = await ended.get()
                except TimeoutError:
                    continue
                call = in_flight.pop(attempt)
                # Not `await call`: that raises CancelledError in this task if the *call* was.
                if await call.code() is grpc.StatusCode.OK:
                    job.succeeded(attempt, await call, time.monotonic())
                else:
                    details, trailing = await call.details(), await call.trailing_metadata()
                    failure = rpc_failure(await call.code(), details, trailing)
                    job.failed(attempt, failure, time.monotonic())
        finally:
            for attempt, call in in_flight.items():
                call.cancel()
                job.abandoned(attempt)


def _report(ended: asyncio.Queue[Attempt], attempt: Attempt, call: Any) -> None:
    ended.put_nowait(attempt)


class _Connections:
    """The channels of one process and event loop, one an address, opened when first used."""

    def __init__(self, settings: ClientSettings) -> None:
        self.pool = AddressPool(settings.addresses)
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._metadata = call_metadata(settings)
        self._channels: dict[str, tuple[grpc.aio.Channel, Any]] = {}

    def is_current(self) -> bool:
        """Whether the caller's process and event loop are those of the channels."""
        return self._pid == os.getpid() and self._loop is asyncio.get_running_loop()

    def start(self, attempt: Attempt) -> Any:
        """Starts the RPC of an attempt; returns grpc's call."""
        method = getattr(self._stub(attempt.address), attempt.method)
        return method(attempt.request, timeout=attempt.timeout_s, metadata=self._metadata)

    def open_stream(self, address: str, requests: AsyncIterator[Any]) -> Any:
        """Opens a score stream; returns grpc's call."""
        return self._stub(address).ScoreStream(
            requests, timeout=MAX_CONNECTION_AGE_S, metadata=self._metadata
        )

    async def close(self) -> None:
        """Closes the channels."""
        channels, self._channels = self._channels, {}
        for channel, _ in channels.values():
            await channel.close()

    def _stub(self, address: str) -> Any:
        if address not in self._channels:
            options = channel_options(self._settings)
            if self._settings.tls is None:
                channel = grpc.aio.insecure_channel(address, options)
            else:
                credentials = channel_credentials(self._settings.tls)
                channel = grpc.aio.secure_channel(address, credentials, options)
            self._channels[address] = (channel, RewardServiceStub(channel))
        return self._channels[address][1]
