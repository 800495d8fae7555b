"""Compares what a program printed with what it should have printed."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from enum import StrEnum

_BLANKS = " \t\r"
_MAX_NUMBER_CHARS = 64
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_MAX_SHOWN_CHARS = 200


class Whitespace(StrEnum):
    """What blanks mean.

    TRAILING forgives blanks at the ends of lines and empty lines at the end of the text, and
    nothing else. EXACT forgives nothing. TOKENS looks only at what stands between blanks and
    newlines.
    """

    TRAILING = "trailing"
    EXACT = "exact"
    TOKENS = "tokens"


def check_tolerance(name: str, value: float | None) -> None:
    """Raises ValueError unless `value` is None or a finite number of at least 0."""
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer may be larger than any float.
    if not (number and 0 <= value <= sys.float_info.max):
        raise ValueError(f"{name} is {value!r:.80}, must be a finite number of at least 0")


def close(expected: float, actual: float, *, abs_tol: float | None, rel_tol: float | None) -> bool:
    """Whether two finite numbers differ by at most `max(abs_tol, rel_tol * |expected|)`.

    What is not finite is close to nothing.
    """
    if not (math.isfinite(expected) and math.isfinite(actual)):
        return False
    return abs(actual - expected) <= max(abs_tol or 0.0, (rel_tol or 0.0) * abs(expected))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextComparison:
    """When two outputs are the same.

    Attributes:
        whitespace: What blanks mean.
        abs_tol: Absolute tolerance of numbers, where the expected one is written with a point or an
            exponent. An expected integer is compared exactly, always: a relative tolerance would
            take 1000000006 for 1000000007.
        rel_tol: Relative tolerance of the same numbers.

    Raises:
        ValueError: If a tolerance is negative or not finite, or is given with EXACT.
    """

    whitespace: Whitespace = Whitespace.TRAILING
    abs_tol: float | None = None
    rel_tol: float | None = None

    def __post_init__(self) -> None:
        check_tolerance("abs_tol", self.abs_tol)
        check_tolerance("rel_tol", self.rel_tol)
        object.__setattr__(self, "whitespace", Whitespace(self.whitespace))
        if self.tolerant and self.whitespace is Whitespace.EXACT:
            raise ValueError("a tolerance needs whitespace='trailing' or 'tokens', not 'exact'")

    @property
    def tolerant(self) -> bool:
        """Whether numbers may differ at all."""
        return self.abs_tol is not None or self.rel_tol is not None

    def difference(self, expected: str, actual: bytes) -> str | None:
        """Why `actual` is not `expected`, in words; None if it is."""
        try:
            text = actual.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"the output is not UTF-8: {error.reason} at byte {error.start}"
        if self.whitespace is Whitespace.EXACT:
            same = text == expected
            return None if same else f"expected {_show(expected)}, got {_show(text)}"
        if self.whitespace is Whitespace.TOKENS:
            return self._line_difference(expected, text, "output", by_token=True)
        wanted, given = _lines(expected), _lines(text)
        for number, (line, other) in enumerate(zip(wanted, given, strict=False), 1):
            found = self._line_difference(line, other, f"line {number}", by_token=self.tolerant)
            if found is not None:
                return found
        if len(wanted) != len(given):
            return f"expected {len(wanted)} lines, got {len(given)}"
        return None

    def _line_difference(self, line: str, other: str, where: str, *, by_token: bool) -> str | None:
        if line == other:
            return None
        if by_token:
            wanted, given = _tokens(line), _tokens(other)
            if len(wanted) == len(given) and all(
                self._same_token(a, b) for a, b in zip(wanted, given, strict=True)
            ):
                return None
        return f"{where}: expected {_show(line)}, got {_show(other)}"

    def _same_token(self, wanted: str, given: str) -> bool:
        if wanted == given:
            return True
        if not self.tolerant or _INTEGER.fullmatch(wanted):
            return False
        if max(len(wanted), len(given)) > _MAX_NUMBER_CHARS:
            return False
        if not (_NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(given)):
            return False
        return close(float(wanted), float(given), abs_tol=self.abs_tol, rel_tol=self.rel_tol)


def _lines(text: str) -> list[str]:
    """Lines without blanks at their ends, without empty ones at the end of the text.

    Only a newline ends a line; a carriage return within one is a character like any other.
    """
    lines = [line.rstrip(_BLANKS) for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _tokens(text: str) -> list[str]:
    for blank in _BLANKS + "\n":
        text = text.replace(blank, " ")
    return [token for token in text.split(" ") if token]


def _show(text: str) -> str:
    shown = repr(text[:_MAX_SHOWN_CHARS])
    return f"{shown}…" if len(text) > _MAX_SHOWN_CHARS else shown
