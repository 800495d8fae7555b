"""Mean and standard deviation of numbers that come one after another."""

from __future__ import annotations

import math


class RunningMoments:
    """Mean and variance in one pass, of all numbers or of the recent ones.

    Without `momentum` every number counts the same and the variance is the unbiased one. With it,
    each number moves the mean by `1 - momentum` of the way, starting at the first.

    Source: Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products",
        Technometrics 4 (1962); the exponential form after Finch, "Incremental calculation of
        weighted mean and variance" (2009).
    """

    def __init__(self, momentum: float | None = None) -> None:
        self._momentum = momentum
        self._count = 0
        self._mean = 0.0
        self._spread = 0.0  # sum of squared deviations, or the exponential variance

    @property
    def count(self) -> int:
        """How many numbers were counted."""
        return self._count

    @property
    def mean(self) -> float:
        """0.0 before the first number."""
        return self._mean

    @property
    def std(self) -> float:
        """0.0 before the second number."""
        if self._count < 2:
            return 0.0
        if self._momentum is None:
            return math.sqrt(self._spread / (self._count - 1))
        return math.sqrt(self._spread)

    def add(self, value: float) -> bool:
        """Counts a number; refuses, with False, one so large that the statistics would overflow."""
        delta = value - self._mean
        if self._momentum is None or self._count == 0:
            mean = self._mean + delta / (self._count + 1)
            spread = self._spread + delta * (value - mean)
        else:
            step = 1.0 - self._momentum
            mean = self._mean + step * delta
            spread = self._momentum * (self._spread + step * delta * delta)
        if not (math.isfinite(mean) and math.isfinite(spread)):
            return False
        if self._count == 0:
            spread = 0.0
        self._count += 1
        self._mean, self._spread = mean, spread
        return True
