"""Types of the parameters of instructions, each with the function that reads it.

A reader takes what JSON, or a data frame that had gaps, made of a value, and gives it in one form.
It raises `ValueError`, in words that follow the parameter's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeAlias

MAX_TEXT_CHARS = 20_000
MAX_KEYWORD_CHARS = 200
MAX_KEYWORDS = 100
MAX_COUNT = 1_000_000
_MAX_SHOWN_CHARS = 60

Reader: TypeAlias = Callable[[object], object]


class Relation(StrEnum):
    """How a count compares with the one that was asked for; the first two are IFEval's."""

    LESS_THAN = "less than"
    AT_LEAST = "at least"
    AT_MOST = "at most"
    MORE_THAN = "more than"
    EXACTLY = "exactly"

    def holds(self, count: int, wanted: int) -> bool:
        """Whether `count` stands in this relation to `wanted`."""
        match self:
            case Relation.LESS_THAN:
                return count < wanted
            case Relation.AT_LEAST:
                return count >= wanted
            case Relation.AT_MOST:
                return count <= wanted
            case Relation.MORE_THAN:
                return count > wanted
            case Relation.EXACTLY:
                return count == wanted


def count(value: object) -> int:
    """An integer from 0, also as a float without a fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{shown(value)}; give an integer from 0 to {MAX_COUNT}")
    return value


def position(value: object) -> int:
    """An integer from 1."""
    number = count(value)
    if number < 1:
        raise ValueError(f"{number}; give 1 or more")
    return number


def text(value: object) -> str:
    """Text that is not blank, stripped."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{shown(value)}; give text")
    if len(value) > MAX_TEXT_CHARS:
        raise ValueError(f"{len(value)} characters; give at most {MAX_TEXT_CHARS}")
    return value.strip()


def keyword(value: object) -> str:
    """A word or a short phrase."""
    word = text(value)
    if len(word) > MAX_KEYWORD_CHARS:
        raise ValueError(f"{len(word)} characters; give at most {MAX_KEYWORD_CHARS}")
    return word


def keywords(value: object) -> tuple[str, ...]:
    """A list of words or short phrases."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{shown(value)}; give a list of words")
    if not 1 <= len(value) <= MAX_KEYWORDS:
        raise ValueError(f"{len(value)} words; give 1 to {MAX_KEYWORDS}")
    return tuple(keyword(word) for word in value)


def letter(value: object) -> str:
    """One character."""
    if not isinstance(value, str) or len(value) != 1:
        raise ValueError(f"{shown(value)}; give one character")
    return value


def relation(value: object) -> Relation:
    """A `Relation`."""
    try:
        return Relation(str(value))
    except ValueError as error:
        known = ", ".join(repr(r.value) for r in Relation)
        raise ValueError(f"{shown(value)}; give one of {known}") from error


def shown(value: object) -> str:
    """`value` in an error message."""
    return f"{value!r:.{_MAX_SHOWN_CHARS}}"
