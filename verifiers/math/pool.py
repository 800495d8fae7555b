"""Killable processes that compare expressions, for callers on any thread.

Theory of operation. Computer algebra on a stranger's expression may run for ever inside one C call,
so nothing but killing a process stops it. A request takes an idle worker (`process`) or starts one,
up to `num_workers`; further callers wait, with a deadline.

Two clocks. The worker's server process ends itself when one request has used `cpu_seconds` of CPU
time, which a busy machine cannot bring about; the worker forks another from what it has imported.
The parent gives up after `wall_seconds`, which only a machine in trouble reaches: that says nothing
about the answer. Then the worker is killed, and the next request starts another. A child of fork()
forgets its parent's workers and starts its own.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
import weakref
from dataclasses import dataclass
from enum import StrEnum

from rewardsvc.verifiers.math.process import (
    DeadlineError,
    PoolLimits,
    ServerEndedError,
    Worker,
    WorkerGoneError,
    WorkerStartError,
)

MEMORY_EXIT_CODE = 77
"""With which a worker ends that has no memory left."""


class Outcome(StrEnum):
    """How a comparison ended."""

    EQUAL = "equal"
    UNEQUAL = "unequal"
    BAD_REFERENCE = "bad_reference"
    """The reference cannot be read, or uses up the limits by itself."""
    TIME_LIMIT = "time_limit"
    """The reference was read in time; the answer used up the CPU time."""
    MEMORY_LIMIT = "memory_limit"
    """The reference was read; the answer used up the memory."""
    GAVE_UP = "gave_up"
    """The machine did not get to it in time."""
    BROKEN = "broken"
    """No worker could be had, or it ended for no known reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An outcome, and how it came about in words."""

    outcome: Outcome
    detail: str


class ComparisonPool:
    """Compares expressions in worker processes. Methods may be called from any thread."""

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(limits.num_workers)
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._closed = False
        _pools.add(self)

    def start(self) -> None:
        """Starts one worker, to learn now rather than later whether that works.

        Raises:
            WorkerStartError: If it does not.
        """
        slots = self._slots
        if not slots.acquire(timeout=self._limits.queue_seconds):
            raise WorkerStartError(f"no free worker within {self._limits.queue_seconds:g} s")
        try:
            self._give_back(self._take())
        finally:
            slots.release()

    def compare(self, reference: str, answer: str, *, spent_seconds: float = 0.0) -> Comparison:
        """Whether two normalised LaTeX texts are the same mathematics. Does not raise.

        Args:
            reference: What it should be.
            answer: What it is.
            spent_seconds: CPU time that the pair has had already; it counts.
        """
        slots = self._slots
        if not slots.acquire(timeout=self._limits.queue_seconds):
            return Comparison(
                outcome=Outcome.GAVE_UP,
                detail=f"no free worker within {self._limits.queue_seconds:g} s",
            )
        try:
            return self._compare(
                {"reference": reference, "answer": answer, "spent_seconds": spent_seconds}
            )
        finally:
            slots.release()

    def close(self) -> None:
        """Kills the workers; comparisons under way end as BROKEN, later ones too."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for worker in idle:
            worker.kill()
        for worker in busy:
            worker.stop()

    def _compare(self, request: dict[str, object]) -> Comparison:
        try:
            worker = self._take()
        except (WorkerStartError, OSError) as error:
            return Comparison(outcome=Outcome.BROKEN, detail=str(error))
        deadline = time.monotonic() + self._limits.wall_seconds
        reference_read = False
        try:
            worker.send(request, deadline)
            if not worker.receive(deadline)["reference_ok"]:
                worker.receive(deadline)
                result = Comparison(
                    outcome=Outcome.BAD_REFERENCE, detail="the reference cannot be read"
                )
            else:
                reference_read = True
                reply = worker.receive(deadline)
                outcome = Outcome.EQUAL if reply["equal"] else Outcome.UNEQUAL
                result = Comparison(outcome=outcome, detail=str(reply["detail"]))
        except ServerEndedError as ended:
            result = self._post_mortem(ended.exit_code, reference_read=reference_read)
            if result.outcome is Outcome.BROKEN:
                self._discard(worker)
            else:
                self._give_back(worker)
        except WorkerGoneError as gone:
            result = Comparison(outcome=Outcome.BROKEN, detail=f"the worker is gone: {gone}")
            self._discard(worker)
        except DeadlineError:
            seconds = self._limits.wall_seconds
            result = Comparison(outcome=Outcome.GAVE_UP, detail=f"no result within {seconds:g} s")
            self._discard(worker)
        except (OSError, ValueError, KeyError) as error:
            result = Comparison(outcome=Outcome.BROKEN, detail=f"{type(error).__name__}: {error}")
            self._discard(worker)
        except BaseException:  # KeyboardInterrupt: the worker's answer would reach the next caller
            self._discard(worker)
            raise
        else:
            self._give_back(worker)
        return result

    def _post_mortem(self, code: int, *, reference_read: bool) -> Comparison:
        if code == -signal.SIGPROF:
            outcome, limit = Outcome.TIME_LIMIT, f"{self._limits.cpu_seconds:g} s of CPU time"
        elif code in (MEMORY_EXIT_CODE, -signal.SIGSEGV):  # the C stack ends in SIGSEGV
            outcome, limit = Outcome.MEMORY_LIMIT, f"{self._limits.memory_mib} MiB"
        else:
            return Comparison(
                outcome=Outcome.BROKEN, detail=f"the worker ended with exit code {code}"
            )
        if not reference_read:
            return Comparison(
                outcome=Outcome.BAD_REFERENCE, detail=f"reading the reference takes over {limit}"
            )
        return Comparison(outcome=outcome, detail=f"the answer takes over {limit}")

    def _take(self) -> Worker:
        with self._lock:
            if self._closed:
                raise WorkerStartError("the pool is closed")
            worker = self._idle.pop() if self._idle else None
        if worker is not None and not worker.is_quiet():
            worker.kill()
            worker = None
        if worker is None:
            worker = Worker(self._limits)
        with self._lock:
            self._busy.add(worker)
        return worker

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            if not self._closed:
                self._idle.append(worker)
                return
        worker.kill()

    def _discard(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
        worker.kill()

    def _forget_after_fork(self) -> None:
        for worker in [*self._idle, *self._busy]:
            worker.abandon()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._limits.num_workers)
        self._idle, self._busy = [], set()


_pools: weakref.WeakSet[ComparisonPool] = weakref.WeakSet()
_shared: dict[PoolLimits, ComparisonPool] = {}
_shared_lock = threading.Lock()


def shared_pool(limits: PoolLimits) -> ComparisonPool:
    """The pool of this process with these limits; starts nothing before its first comparison."""
    with _shared_lock:
        pool = _shared.get(limits)
        if pool is None:
            pool = _shared[limits] = ComparisonPool(limits)
        return pool


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _after_fork_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for pool in list(_pools):
        pool._forget_after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
