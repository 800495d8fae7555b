"""A number of places, shared out in the order in which they were asked for."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """Places that callers take, some of them several at once.

    Whoever gives places back wakes those whose turn it is, and nobody else. One who needs several
    is not overtaken for ever by others who need one.
    """

    def __init__(self, num_places: int) -> None:
        """All places are free."""
        self._lock = threading.Lock()
        self._num_free = num_places
        self._waiting: deque[_Turn] = deque()
        self._closed = False

    def take(self, count: int, timeout_seconds: float) -> bool:
        """Waits for `count` places.

        Returns:
            Whether they are the caller's now; if not, they were not free in time, or all is closed.
        """
        with self._lock:
            if self._closed:
                return False
            if not self._waiting and count <= self._num_free:
                self._num_free -= count
                return True
            turn = _Turn(count)
            self._waiting.append(turn)
        try:
            turn.come.acquire(timeout=max(timeout_seconds, 0.0))
        except BaseException:  # an interrupt: whatever has come is nobody's
            if self._withdraw(turn):
                self.give_back(count)
            raise
        return self._withdraw(turn)

    def _withdraw(self, turn: _Turn) -> bool:
        """Stops waiting; whether the turn had come."""
        with self._lock:
            if not turn.granted and turn in self._waiting:
                self._waiting.remove(turn)
                self._grant()  # it may have been in the way
            return turn.granted

    def give_back(self, count: int) -> None:
        """Frees `count` places."""
        with self._lock:
            self._num_free += count
            self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0].count <= self._num_free:
            turn = self._waiting.popleft()
            self._num_free -= turn.count
            turn.granted = True
            turn.come.release()

    def close(self) -> None:
        """Sends those away who wait, and all who come. Idempotent."""
        with self._lock:
            self._closed = True
            for turn in self._waiting:
                turn.come.release()
            self._waiting.clear()


class _Turn:
    """One who waits."""

    __slots__ = ("come", "count", "granted")

    def __init__(self, count: int) -> None:
        self.count = count
        self.granted = False
        self.come = threading.Lock()
        self.come.acquire()
