"""A closed interval in a configuration, `[low, high]`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, FiniteFloat


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if low > high:
        raise ValueError(f"low is {low} and high is {high}; give [low, high] with low <= high")
    return bounds


Bounds: TypeAlias = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_ordered)]


def clipped(value: float, bounds: tuple[float, float] | None) -> float:
    """`value` moved into the interval; unchanged where there is none."""
    return value if bounds is None else min(max(value, bounds[0]), bounds[1])
