"""What a single test says, in the forms in which callers write it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


def check_weight(weight: float) -> None:
    """Raises ValueError unless `weight` is finite and above 0."""
    if not 0 < weight <= sys.float_info.max:  # an integer may be larger than any float
        raise ValueError(f"weight is {weight!r}, must be a finite number above 0")


@dataclass(frozen=True, slots=True)
class StdioCase:
    """What a program reads and what it should print.

    Attributes:
        stdin: Its input.
        stdout: The expected output; with a checker or an interactor, what that is told.
        weight: Share of the test among its neighbours.
    """

    stdin: str
    stdout: str = ""
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("stdin", "stdout"):
            value = getattr(self, name)
            if type(value) is not str:
                raise ValueError(f"{name} of a test is a {type(value).__name__}, must be a str")
        check_weight(self.weight)


@dataclass(frozen=True, slots=True)
class CallCase:
    """Arguments of a call and what it should return: plain data, see `sandbox.values`.

    Attributes:
        args: Positional arguments.
        expected: What the call returns.
        kwargs: Arguments by name.
        weight: Share of the test among its neighbours.
    """

    args: Sequence[object]
    expected: object
    kwargs: Mapping[str, object] = field(default_factory=dict, kw_only=True)
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if type(self.args) not in (tuple, list):
            raise ValueError(
                f"args of a test is {self.args!r}, must be a tuple or list: one argument x is (x,)"
            )
        check_weight(self.weight)


def stdio_cases(cases: Sequence[StdioCase | tuple[str, str]]) -> tuple[StdioCase, ...]:
    """Cases from pairs of input and expected output."""
    return tuple(c if isinstance(c, StdioCase) else StdioCase(*c) for c in cases)


def call_cases(
    cases: Sequence[CallCase | tuple[Sequence[object], object]],
) -> tuple[CallCase, ...]:
    """Cases from pairs of arguments and expected value."""
    return tuple(c if isinstance(c, CallCase) else CallCase(*c) for c in cases)
