"""One worker process as the front process sees it: started, asked, watched, and started again.

A worker that ends is started again after a pause that grows with each time that it does not last,
and loads what it had. What it loads must be what it served before: if the checkpoint on disk has
changed meanwhile, the model stays out of service on this worker until it is reloaded everywhere,
because two workers with different weights under one name would give mixed batches.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from rewardsvc.errors import ConfigError, NotServingError, ServiceError
from rewardsvc.v1 import admin_pb2, admin_pb2_grpc, reward_pb2_grpc
from rewardsvc.workers.child import METRICS, UNLIMITED, WorkerSettings

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 3600.0
UNLOAD_TIMEOUT_S = 10.0
PING_EVERY_S = 10.0
PING_TIMEOUT_S = 60.0
"""An event loop that does not answer for this long is hung: the process is ended."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LASTED_S = 60.0
"""A worker that was up for this long starts again with the first pause."""

KILL_AFTER_S = 5.0
CHANNEL_GRACE_S = 1.0

CHANNEL_OPTIONS = [
    *UNLIMITED,
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass(slots=True, eq=False, kw_only=True)
class Placement:
    """A model on a worker.

    Attributes:
        section: Its configuration.
        version: What the worker said when it was first loaded.
        is_loaded: Whether it can be asked now.
        trouble: Why not, where that will not pass by itself.
    """

    section: dict[str, Any]
    version: str = ""
    is_loaded: bool = False
    trouble: str = ""


class Worker:
    """One worker process. For one event loop.

    Attributes:
        name: "cuda:0", "cpu/1".
        outstanding: Cost of what it was asked and has not answered, in the dispatcher's measure.
    """

    def __init__(self, settings: WorkerSettings, changed: Callable[[], None]) -> None:
        """Starts nothing.

        Args:
            settings: What the process is told.
            changed: Called when the worker, or a model on it, comes up or goes down.
        """
        self.name = settings.name
        self.outstanding = 0
        self._settings = settings
        self._changed = changed
        self._placements: dict[str, Placement] = {}
        self._process: Process | None = None
        self._channel: Any = None
        self._rewards: Any = None
        self._admin: Any = None
        self._up = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._num_starts = 0
        self._closing = False

    @property
    def is_up(self) -> bool:
        """Whether the process runs and answers."""
        return self._up.is_set()

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def num_starts(self) -> int:
        """How often it was started."""
        return self._num_starts

    @property
    def num_models(self) -> int:
        """Models that are meant to be on it."""
        return len(self._placements)

    @property
    def rewards(self) -> Any:
        """The RewardService stub."""
        return self._rewards

    def placement(self, model: str) -> Placement | None:
        """What is known of a model on this worker."""
        return self._placements.get(model)

    def serves(self, model: str) -> bool:
        """Whether it can be asked about a model now."""
        found = self._placements.get(model)
        return self.is_up and found is not None and found.is_loaded

    async def load(self, model: str, section: dict[str, Any]) -> str:
        """Loads a model, starting the process if need be; returns the model's version.

        Raises:
            ConfigError: If the model cannot be loaded.
            NotServingError: If the process does not come up, or goes down meanwhile.
        """
        await self._start()
        placement = Placement(section=section)
        try:
            placement.version = await self._load(model, section)
        except grpc.aio.AioRpcError as error:
            raise _loading_error(self.name, error) from None
        placement.is_loaded = True
        self._placements[model] = placement
        return placement.version

    async def unload(self, model: str) -> None:
        """Takes a model off; what it is asked meanwhile finishes."""
        if self._placements.pop(model, None) is None or not self.is_up:
            return
        request = admin_pb2.UnloadScorerRequest(name=model)
        try:
            await self._admin.UnloadScorer(request, timeout=UNLOAD_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.warning("worker %s: cannot unload %s: %s", self.name, model, error.details())

    async def metrics_text(self, timeout_s: float) -> str:
        """Prometheus' text of the process; empty if it does not answer."""
        if not self.is_up:
            return ""
        try:
            reply: bytes = await self._channel.unary_unary(METRICS)(b"", timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return ""
        return reply.decode()

    async def close(self) -> None:
        """Drains the process and ends it."""
        self._closing = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        await self._end(grace_s=self._settings.engine.drain_s + KILL_AFTER_S)

    async def _start(self) -> None:
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name=f"worker-{self.name}")
        up = asyncio.create_task(self._up.wait())
        try:
            done, _ = await asyncio.wait(
                {up, self._supervisor},
                timeout=START_TIMEOUT_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            up.cancel()
        if not done or not self.is_up:
            raise NotServingError(f"worker {self.name} did not come up; its log says why")

    async def _supervise(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                await self._spawn()
                await self._reload()
                self._up.set()
                self._changed()
                reason = await self._watch()
            except (OSError, TimeoutError, grpc.aio.AioRpcError) as error:
                reason = f"did not start: {type(error).__name__}: {error}"
            self._up.clear()
            for placement in self._placements.values():
                placement.is_loaded = False
            self._changed()
            await self._end(grace_s=0.0)
            if time.monotonic() - began > LASTED_S:
                pause_s = FIRST_PAUSE_S
            log.error("worker %s %s; starting it again in %g s", self.name, reason, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _spawn(self) -> None:
        """Starts the process, not by fork of this one, and waits until it listens."""
        self._num_starts += 1
        self._settings.socket.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rewardsvc.workers.child"),
            stdin=PIPE,
            # A signal for the terminal's process group is the front's business.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._settings.model_dump_json().encode() + b"\n")
        self._channel = grpc.aio.insecure_channel(
            f"unix:{self._settings.socket}", options=CHANNEL_OPTIONS
        )
        self._rewards = reward_pb2_grpc.RewardServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        ready = asyncio.create_task(self._channel.channel_ready())
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait(
                {ready, ended}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if ended.done():
                raise OSError(f"the process ended with status {ended.result()}")
            if not ready.done():
                raise TimeoutError(f"it did not listen within {START_TIMEOUT_S:g} s")
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    async def _load(self, model: str, section: dict[str, Any]) -> str:
        request = admin_pb2.LoadScorerRequest(name=model, config_json=json.dumps(section))
        reply = await self._admin.LoadScorer(request, timeout=LOAD_TIMEOUT_S)
        return str(reply.scorer.version)

    async def _reload(self) -> None:
        """Loads what the process had before it ended."""
        for model, placement in list(self._placements.items()):
            try:
                version = await self._load(model, placement.section)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    raise
                placement.trouble = f"cannot be loaded again: {error.details()}"
                log.error("worker %s: %s %s", self.name, model, placement.trouble)
                continue
            if version != placement.version:
                placement.trouble = (
                    f"is {version} on disk now, and {placement.version} elsewhere; reload it"
                )
                log.error("worker %s: %s %s", self.name, model, placement.trouble)
                continue
            placement.is_loaded, placement.trouble = True, ""

    async def _watch(self) -> str:
        """Waits until the process ends or hangs; returns what happened."""
        assert self._process is not None
        ended = asyncio.create_task(self._process.wait())
        try:
            while True:
                await asyncio.wait({ended}, timeout=PING_EVERY_S)
                if ended.done():
                    return f"ended with status {ended.result()}"
                try:
                    await self._channel.unary_unary(METRICS)(b"", timeout=PING_TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                        return f"did not answer for {PING_TIMEOUT_S:g} s"
        finally:
            ended.cancel()

    async def _end(self, grace_s: float) -> None:
        process, self._process = self._process, None
        channel, self._channel = self._channel, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()  # it drains and ends
            try:
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                if process.returncode is None:
                    process.kill()
                await process.wait()
        if channel is not None:
            # Calls in flight learn from the broken connection that the worker is gone.
            await channel.close(CHANNEL_GRACE_S)


def _loading_error(worker: str, error: grpc.aio.AioRpcError) -> ServiceError:
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return NotServingError(f"worker {worker} went down while it loaded: {error.details()}")
    return ConfigError(str(error.details()))
