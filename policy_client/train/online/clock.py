"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Seconds spent in the phases of a step, as the host sees them.

    Example:
        >>> clock = PhaseClock()
        >>> with clock("update"):
        ...     pass
        >>> list(clock.take())
        ['update']
    """

    def __init__(self) -> None:
        """Starts with no phases."""
        self._spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to `phase`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - began)

    def add(self, phase: str, seconds: float) -> None:
        """Adds `seconds` to `phase`."""
        self._spent[phase] += seconds

    def take(self) -> dict[str, float]:
        """The phases since this was last asked."""
        spent, self._spent = dict(self._spent), defaultdict(float)
        return spent
