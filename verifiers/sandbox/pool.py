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
from rewardsvc.verifiers.sandbox.turns import Turns
from rewardsvc.verifiers.sandbox.types import SandboxError

# How long a slot takes, at most, to make its next child.
_REST_SECONDS = 0.002


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
        self._lock = threading.Lock()
        self._turns = Turns(self._num_slots)
        # In the order in which they were given back, and when that was.
        self._idle: list[tuple[float, Slot]] = []

    @contextmanager
    def take(self, count: int, timeout_seconds: float) -> Iterator[list[Slot]]:
        """`count` slots that work, all at once: two callers who each need two cannot block each
        other with one in hand.

        Raises:
            SandboxError: If they are not free in time, cannot be started, or the pool is closed.
        """
        if not self._turns.take(count, timeout_seconds):
            if self._closed:
                raise SandboxError("the sandbox is closed")
            raise SandboxError(f"no slot became free within {timeout_seconds:.0f} s")
        slots: list[Slot] = []
        try:
            with self._lock:
                slots = [self._choose() for _ in range(min(count, len(self._idle)))]
            slots = self._with_live_ones(slots, count)
            yield slots
        finally:
            with self._lock:
                usable = [slot for slot in slots if slot.usable]
                if not self._closed:
                    now = time.monotonic()
                    self._idle += [(now, slot) for slot in usable]
                    usable = []
            self._turns.give_back(count)
            for slot in usable:
                slot.close()

    def _choose(self) -> Slot:
        """Takes the slot that was used last, whose memory is still in the caches; but not while it
        is making its next child."""
        rested = time.monotonic() - _REST_SECONDS
        recent = (
            index for index in reversed(range(len(self._idle))) if self._idle[index][0] <= rested
        )
        return self._idle.pop(next(recent, 0))[1]

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
            return [slot.pid for _, slot in self._idle]

    def close(self) -> None:
        """Ends idle slots now and the others when their runs end. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self._turns.close()
        for _, slot in idle:
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
