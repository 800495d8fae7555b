"""SandboxService: RunCode, one program in a jail.

The jails live in processes of their own (see `rewardsvc.verifiers.sandbox`), away from the process
that holds models; threads here only wait for them, as many as there are slots.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from rewardsvc.config import SandboxSettings, ServerSettings
from rewardsvc.convert import wire_text
from rewardsvc.errors import (
    DeadlinePassedError,
    InvalidRequestError,
    NotServingError,
    QueueFullError,
    ScorerUnusableError,
)
from rewardsvc.servicers.gate import Gate
from rewardsvc.servicers.guard import deadline, statuses
from rewardsvc.v1 import sandbox_pb2 as pb
from rewardsvc.v1 import sandbox_pb2_grpc
from rewardsvc.verifiers.sandbox import (
    Limits,
    RunResult,
    RunStatus,
    Sandbox,
    SandboxError,
    UnknownLanguageError,
)

log = logging.getLogger(__name__)

STATUSES: dict[RunStatus, pb.RunStatus.ValueType] = {
    status: pb.RunStatus.Value(f"RUN_STATUS_{status.name}") for status in RunStatus
}
LIMIT_NAMES = {
    "cpu_time_ms": "cpu_ms",
    "wall_time_ms": "wall_ms",
    "memory_mib": "memory_mib",
    "output_bytes": "output_bytes",
    "num_processes": "num_processes",
}
"""Field of RunLimits → field of `Limits`; the maxima in `SandboxSettings` have the former names."""


class SandboxServicer(sandbox_pb2_grpc.SandboxServiceServicer):
    """Answers SandboxService with one pool of jails."""

    def __init__(self, settings: SandboxSettings, server: ServerSettings, gate: Gate) -> None:
        self._settings = settings
        self._default_deadline_s = server.default_deadline_s
        self._gate = gate
        self._sandbox: Sandbox | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._num_waiting = 0
        self._mean_run_s = 1.0
        self._why_not = "no sandbox is configured; the operator can set sandbox.enabled"

    async def start(self) -> None:
        """Starts the jails, if there are to be any. A machine that cannot isolate is no exception
        here: RunCode will say so."""
        if not self._settings.enabled:
            return
        try:
            self._sandbox = await asyncio.to_thread(self._build)
        except SandboxError as error:
            self._why_not = str(error)
            log.error("RunCode is off: %s", error)
            return
        self._threads = ThreadPoolExecutor(self._sandbox.num_slots, thread_name_prefix="run-code")
        log.info("the sandbox has %d slots", self._sandbox.num_slots)

    def _build(self) -> Sandbox:
        sandbox = Sandbox(num_slots=self._settings.num_slots, isolation=self._settings.isolation)
        sandbox.start()
        return sandbox

    async def close(self) -> None:
        """Ends the jails."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._sandbox is not None:
            await asyncio.to_thread(self._sandbox.close)

    async def RunCode(  # noqa: N802
        self, request: pb.RunCodeRequest, context: Any
    ) -> pb.RunCodeResponse:
        """Runs one program and tells what it did; see the proto."""
        async with statuses(context):
            with self._gate.enter():
                limits = self._limits(request.limits)
                async with deadline(context, self._default_deadline_s) as call:
                    return await self._run(request, limits, call.deadline)
        raise AssertionError("abort raises")

    async def _run(
        self, request: pb.RunCodeRequest, limits: Limits, deadline_at: float
    ) -> pb.RunCodeResponse:
        if self._sandbox is None or self._threads is None:
            raise ScorerUnusableError(self._why_not)
        if self._num_waiting >= self._settings.max_queue:
            rounds = self._num_waiting / self._sandbox.num_slots
            raise QueueFullError(
                f"{self._num_waiting} programs are waiting or running; try later, "
                "or raise sandbox.max_queue",
                retry_delay_ms=round(1000 * rounds * self._mean_run_s),
            )
        self._num_waiting += 1
        try:
            work = partial(self._run_in_thread, self._sandbox, request, limits, deadline_at)
            result = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._num_waiting -= 1
        return _to_proto(result)

    def _run_in_thread(
        self, sandbox: Sandbox, request: pb.RunCodeRequest, limits: Limits, deadline_at: float
    ) -> RunResult:
        """Runs it; a program that is still going at the call's deadline is killed."""
        began = time.monotonic()
        left_ms = int(1000 * (deadline_at - began))
        if left_ms <= 0:
            raise DeadlinePassedError("the deadline passed before a slot was free")
        cut_short = left_ms < limits.elapsed_ms
        if cut_short:
            limits = replace(limits, wall_ms=left_ms)
        try:
            result = sandbox.run(
                request.language,
                request.code,
                stdin=request.stdin,
                files=dict(request.files),
                fetch=list(request.fetch_files),
                limits=limits,
            )
        except UnknownLanguageError as error:
            raise InvalidRequestError(f"language: {error}") from None
        except ValueError as error:
            raise InvalidRequestError(f"files: {error}") from None
        except SandboxError as error:
            raise NotServingError(f"the sandbox pool is down: {error}") from error
        took_s = time.monotonic() - began
        self._mean_run_s = 0.9 * self._mean_run_s + 0.1 * took_s
        if cut_short and result.status is RunStatus.TIME_LIMIT:
            raise DeadlinePassedError("the deadline passed while the program ran; it was killed")
        return result

    def _limits(self, wanted: pb.RunLimits) -> Limits:
        """The run's limits: the caller's where given, the defaults elsewhere.

        Raises:
            InvalidRequestError: If one is negative or over the operator's maximum.
        """
        chosen: dict[str, int] = {}
        for name, field in LIMIT_NAMES.items():
            value, largest = getattr(wanted, name), getattr(self._settings, f"max_{name}")
            if value < 0 or value > largest:
                raise InvalidRequestError(
                    f"limits.{name}: {value} is out of range; use 1 to {largest}, or 0 for the "
                    "default"
                )
            if value:
                chosen[field] = value
        defaults = Limits()
        for name, field in LIMIT_NAMES.items():
            default, largest = getattr(defaults, field), getattr(self._settings, f"max_{name}")
            if field not in chosen and default is not None:
                chosen[field] = min(default, largest)
        limits = Limits(**chosen)
        longest = self._settings.max_wall_time_ms
        return limits if limits.elapsed_ms <= longest else replace(limits, wall_ms=longest)


def _to_proto(result: RunResult) -> pb.RunCodeResponse:
    return pb.RunCodeResponse(
        status=STATUSES[result.status],
        exit_code=result.exit_code,
        signal=result.signal,
        stdout=result.stdout,
        stderr=result.stderr,
        files=dict(result.files),
        cpu_ms=round(result.cpu_ms),
        wall_ms=round(result.wall_ms),
        peak_memory_mib=round(result.peak_mib),
        message=wire_text(result.message),
    )
