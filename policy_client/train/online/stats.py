"""Numbers gathered over the minibatches of a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


class Averages:
    """Weighted means, sums, counts, minima and maxima by name. JSON can hold its state."""

    def __init__(self) -> None:
        """Starts empty."""
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._weights: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._lows: dict[str, float] = {}
        self._highs: dict[str, float] = {}

    def add(self, name: str, total: float, weight: float) -> None:
        """Adds to the mean `name`: a sum of values, and of how many."""
        self._sums[name] += total
        self._weights[name] += weight

    def count(self, name: str, number: float = 1.0) -> None:
        """Counts events, or adds to a sum."""
        self._counts[name] += number

    def low(self, name: str, value: float) -> None:
        """Keeps the smallest value."""
        self._lows[name] = min(value, self._lows.get(name, value))

    def high(self, name: str, value: float) -> None:
        """Keeps the largest value."""
        self._highs[name] = max(value, self._highs.get(name, value))

    def take_count(self, name: str) -> float:
        """The count or sum `name`, which is removed; 0 if there is none."""
        return self._counts.pop(name, 0.0)

    def merge(self, other: Averages) -> None:
        """Adds all that `other` has gathered."""
        for name, total in other._sums.items():
            self.add(name, total, other._weights[name])
        for name, number in other._counts.items():
            self.count(name, number)
        for name, value in other._lows.items():
            self.low(name, value)
        for name, value in other._highs.items():
            self.high(name, value)

    def result(self) -> dict[str, float]:
        """All of them; a mean over nothing is left out."""
        means = {
            name: total / self._weights[name]
            for name, total in self._sums.items()
            if self._weights[name]
        }
        return {**means, **self._counts, **self._lows, **self._highs}

    def state_dict(self) -> dict[str, Any]:
        """What is gathered so far; JSON values."""
        return {
            "sums": dict(self._sums),
            "weights": dict(self._weights),
            "counts": dict(self._counts),
            "lows": dict(self._lows),
            "highs": dict(self._highs),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Averages:
        """One that goes on from `state_dict`."""
        averages = cls()
        averages._sums.update(state["sums"])
        averages._weights.update(state["weights"])
        averages._counts.update(state["counts"])
        averages._lows.update(state["lows"])
        averages._highs.update(state["highs"])
        return averages

    @classmethod
    def total(cls, states: Sequence[Mapping[str, Any]]) -> Averages:
        """Everything that several have gathered, of which there are the `state_dict`s."""
        averages = cls.from_state(states[0])
        for state in states[1:]:
            averages.merge(cls.from_state(state))
        return averages
