"""Whether the server takes work: loading, serving or draining, and how much is in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from rewardsvc.errors import NotServingError


class Phase(StrEnum):
    """The life of a server."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Gate:
    """Lets calls in while serving, and tells when the last has left. For one event loop."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.draining = asyncio.Event()
        """Set when draining begins; long-lived calls watch it."""
        self._num_calls = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def num_calls(self) -> int:
        """Calls in flight."""
        return self._num_calls

    def open(self) -> None:
        """Loading is done. Does nothing if draining has begun already."""
        if self.phase is Phase.LOADING:
            self.phase = Phase.SERVING

    def drain(self) -> None:
        """From now on new calls are refused."""
        self.phase = Phase.DRAINING
        self.draining.set()

    def check(self) -> None:
        """Passes while serving.

        Raises:
            NotServingError: While loading or draining.
        """
        if self.phase is not Phase.SERVING:
            raise NotServingError(f"the server is {self.phase}; try again, or another address")

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Counts a call in flight within the block.

        Raises:
            NotServingError: While loading or draining.
        """
        self.check()
        self._num_calls += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self._empty.set()

    async def wait_empty(self, timeout_s: float) -> bool:
        """Waits for the calls in flight; whether they all left in time."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
