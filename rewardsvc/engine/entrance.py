"""Entries of admitted calls that wait for room in the queue, the most urgent call's first."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from rewardsvc.engine.queue import WorkQueue
from rewardsvc.engine.work import Entry

ENTER_AT_ONCE = 32
"""Entries of one call that enter the queue before it is asked again whose turn it is."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """Entries of one call, at least one."""

    client: str
    entries: deque[Entry]
    entered: asyncio.Future[None]


class Entrance:
    """In front of one queue, on its event loop."""

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue
        self._waiters: list[_Waiter] = []

    def __bool__(self) -> bool:
        """Whether anything waits here, or did until a moment ago."""
        return bool(self._waiters)

    def clients(self) -> frozenset[str]:
        """Whose entries wait."""
        return frozenset(w.client for w in self._waiters if not w.entered.done())

    def bring(self, entries: deque[Entry]) -> asyncio.Future[None]:
        """Entries of one call, at least one; done when the last of them is inside."""
        entered = asyncio.get_running_loop().create_future()
        self._waiters.append(_Waiter(entries[0].client, entries, entered))
        return entered

    def let_in(self) -> int:
        """Moves entries into the queue while there is room.

        Returns:
            How many of them wait for the answer of an identical item there.
        """
        num_shared = 0
        self._waiters = [w for w in self._waiters if w.entries and not w.entered.done()]
        while self._waiters:
            waiter = min(self._waiters, key=lambda w: self._queue.urgency(w.entries[0]))
            for _ in range(ENTER_AT_ONCE):
                if not waiter.entries or not self._queue.has_room(waiter.entries[0]):
                    break
                num_shared += self._queue.push(waiter.entries.popleft())
            if waiter.entries and not self._queue.has_room(waiter.entries[0]):
                break
            if not waiter.entries:
                self._waiters.remove(waiter)
                waiter.entered.set_result(None)
        return num_shared

    def abandon(self) -> None:
        """Lets nobody wait any longer; what has not entered does not."""
        for waiter in self._waiters:
            if not waiter.entered.done():
                waiter.entered.set_result(None)
