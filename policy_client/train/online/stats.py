"""Numbers gathered over the minibatches of a step."""

from __future__ import annotations

from collections import defaultdict


class Averages:
    """Weighted means, counts, minima and maxima by name."""

    def __init__(self) -> None:
        """Starts empty."""
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._weights: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._extremes: dict[str, float] = {}

    def add(self, name: str, total: float, weight: float) -> None:
        """Adds to the mean `name`: a sum of values, and of how many."""
        self._sums[name] += total
        self._weights[name] += weight

    def count(self, name: str) -> None:
        """Counts one event."""
        self._counts[name] += 1

    def low(self, name: str, value: float) -> None:
        """Keeps the smallest value."""
        self._extremes[name] = min(value, self._extremes.get(name, value))

    def high(self, name: str, value: float) -> None:
        """Keeps the largest value."""
        self._extremes[name] = max(value, self._extremes.get(name, value))

    def result(self) -> dict[str, float]:
        """All of them; a mean over nothing is left out."""
        means = {
            name: total / self._weights[name]
            for name, total in self._sums.items()
            if self._weights[name]
        }
        return {**means, **self._counts, **self._extremes}
