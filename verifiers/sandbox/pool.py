"""The slots of one sandbox: started when first needed, replaced when they break, never
inherited."""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from rewardsvc.verifiers.sandbox import cgroups
from rewardsvc.verifiers.sandbox.slot import Slot, SlotSettings
from rewardsvc.verifiers.sandbox.types import SandboxError


class SlotPool:
    """At most `num_slots` slots, handed out one thread at a time.

    After a fork, the child's copy forgets its slots, which are the parent's, and starts its own.
    """

    def __init__(self, settings: SlotSettings, num_slots: int) -> None:
        """Starts nothing yet.

        Args:
            settings: What slots are made with.
            num_slots: How many programs run at a time.
        """
        self._settings = settings
        self._num_slots = num_slots
        self._salts = itertools.count()
        self._closed = False
        self._started: weakref.WeakSet[Slot] = weakref.WeakSet()
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Condition()
        self._idle: list[Slot] = []
        self._num_taken = 0

    @contextmanager
    def take(self, count: int, timeout_seconds: float) -> Iterator[list[Slot]]:
        """`count` slots that work, all at once: two callers who each need two cannot block each
        other with one in hand.

        Raises:
            SandboxError: If they are not free in time, cannot be started, or the pool is closed.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            while not self._closed and self._num_taken + count > self._num_slots:
                if not self._lock.wait(deadline - time.monotonic()):
                    raise SandboxError(f"no slot became free within {timeout_seconds:.0f} s")
            if self._closed:
                raise SandboxError("the sandbox is closed")
            self._num_taken += count
            # The one that has rested longest: the one just used is still making its next child.
            slots = [self._idle.pop(0) for _ in range(min(count, len(self._idle)))]
        try:
            slots = self._with_live_ones(slots, count)
            yield slots
        finally:
            with self._lock:
                self._num_taken -= count
                usable = [slot for slot in slots if slot.usable]
                if not self._closed:
                    self._idle += usable
                    usable = []
                self._lock.notify_all()
            for slot in usable:
                slot.close()

    def _with_live_ones(self, slots: list[Slot], count: int) -> list[Slot]:
        """`slots` with dead ones replaced, and as many new ones as are missing."""
        live = [slot for slot in slots if slot.alive]
        for slot in slots:
            if slot not in live:
                slot.close()
        started: list[Slot] = []
        try:
            while len(live) + len(started) < count:
                started.append(Slot(self._settings, os.getpid() * 256 + next(self._salts)))
            self._started.update(started)
            for slot in started:
                slot.wait_until_ready()
        except (OSError, SandboxError) as error:
            for slot in (*live, *started):
                slot.close()
            raise SandboxError(str(error)) from error
        return live + started

    def start(self) -> None:
        """Starts all slots now, together, instead of when they are first needed.

        Raises:
            SandboxError: If they cannot be started.
        """
        with self.take(self._num_slots, timeout_seconds=0.0):
            pass

    def pids(self) -> list[int]:
        """Of the keepers of the idle slots."""
        with self._lock:
            return [slot.pid for slot in self._idle]

    def close(self) -> None:
        """Ends idle slots now and the others when their runs end. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._lock.notify_all()
        for slot in idle:
            slot.close()

    def forget_parent(self) -> None:
        """In a forked child: lets go of the parent's slots. Locks may be held by lost threads."""
        inherited = list(self._started)
        self._started = weakref.WeakSet()
        self._reset()
        for slot in inherited:
            slot.abandon()


def sweep(settings: SlotSettings) -> None:
    """Removes cgroups that killed owners have left behind."""
    if settings.home is not None:
        cgroups.sweep(settings.home)
