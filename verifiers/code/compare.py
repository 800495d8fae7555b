"""Compares values in their tagged form (see `sandbox.values`), outside the candidate's process.

The walk is led by the expected value, so that its size bounds the work, and it compares data with
data: there is nothing in either tree that could answer a question about itself.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum

from rewardsvc.verifiers.code.text import check_tolerance, close
from rewardsvc.verifiers.sandbox.values import Tree

_SEQUENCE_TAGS = ("t", "q")
_UNORDERED_TAGS = ("s", "fs")


class Numbers(StrEnum):
    """STRICT tells 1 from 1.0 and 0.0 from -0.0. VALUE does not. Neither takes True for 1."""

    STRICT = "strict"
    VALUE = "value"


class Sequences(StrEnum):
    """STRICT tells a list from a tuple. ANY does not, nor from a deque; it is for tests from
    JSON."""

    STRICT = "strict"
    ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueComparison:
    """When two values are the same.

    NaN is the same as NaN: a test that expects it means it.

    Attributes:
        numbers: Whether the type of a number matters.
        sequences: Whether the type of a sequence matters.
        abs_tol: Absolute tolerance, where the expected number is a float and not inside a set or a
            key. Integers are compared exactly, always.
        rel_tol: Relative tolerance of the same numbers.

    Raises:
        ValueError: If a tolerance is negative or not finite.
    """

    numbers: Numbers = Numbers.STRICT
    sequences: Sequences = Sequences.STRICT
    abs_tol: float | None = None
    rel_tol: float | None = None

    def __post_init__(self) -> None:
        check_tolerance("abs_tol", self.abs_tol)
        check_tolerance("rel_tol", self.rel_tol)
        object.__setattr__(self, "numbers", Numbers(self.numbers))
        object.__setattr__(self, "sequences", Sequences(self.sequences))

    def same(self, expected: Tree, actual: Tree) -> bool:
        """Whether two trees are the same value; total on any JSON as `actual`."""
        try:
            return self._same(expected, actual)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            return False  # `actual` is no tree that the encoder makes

    def _same(self, expected: Tree, actual: Tree) -> bool:
        if expected is None or type(expected) in (bool, str):
            return type(actual) is type(expected) and bool(actual == expected)
        number = _number(expected)
        if number is not None:
            other = _number(actual)
            return other is not None and self._same_number(number, other)
        wanted_tag, wanted = _tag(expected)
        given_tag, given = _tag(actual)
        if wanted_tag in ("", *_SEQUENCE_TAGS):
            if not self._same_sequence_type(wanted_tag, given_tag):
                return False
            return len(wanted) == len(given) and all(map(self._same, wanted, given))
        if wanted_tag != given_tag or wanted_tag == "x":
            return False  # of opaque things nobody knows whether they are the same
        if wanted_tag in _UNORDERED_TAGS:
            return len(wanted) == len(given) and {*map(self._key, wanted)} == {
                *map(self._key, given)
            }
        if wanted_tag == "d":
            if len(wanted) != len(given):
                return False
            found = {self._key(key): value for key, value in given}
            return all(
                self._key(key) in found and self._same(value, found[self._key(key)])
                for key, value in wanted
            )
        return json.dumps(wanted) == json.dumps(given)

    def _same_sequence_type(self, wanted: str, given: str) -> bool:
        if self.sequences is Sequences.ANY:
            return given in ("", *_SEQUENCE_TAGS)
        return wanted == given

    def _same_number(self, expected: int | float, actual: int | float) -> bool:
        if self.numbers is Numbers.STRICT and type(expected) is not type(actual):
            return False
        if type(expected) is float and self._close(expected, float(actual)):
            return True
        if expected != expected or actual != actual:
            return expected != expected and actual != actual
        if expected != actual:
            return False
        if self.numbers is Numbers.VALUE or type(expected) is int:
            return True  # there is one zero among integers, and large ones are no floats
        return math.copysign(1, expected) == math.copysign(1, actual)

    def _close(self, expected: float, actual: float) -> bool:
        tolerant = self.abs_tol is not None or self.rel_tol is not None
        return tolerant and close(expected, actual, abs_tol=self.abs_tol, rel_tol=self.rel_tol)

    def _key(self, tree: Tree) -> str:
        """A text that is the same for two trees if and only if they are the same value."""
        number = _number(tree)
        if number is not None:
            if self.numbers is Numbers.VALUE and number == number and abs(number) != math.inf:
                return f"n{int(number):x}" if number == int(number) else f"n{number.hex()}"  # type: ignore[union-attr]
            return f"{type(number).__name__}{number:x}" if type(number) is int else f"f{number!r}"
        tag, body = _tag(tree) if type(tree) in (list, dict) else ("-", tree)
        if tag in _UNORDERED_TAGS:
            return f"{tag}{sorted(map(self._key, body))}"
        if tag in ("", *_SEQUENCE_TAGS):
            name = "" if self.sequences is Sequences.ANY else tag
            return f"{name}[{','.join(map(self._key, body))}]"
        return f"{tag}{json.dumps(body)}"


def _number(tree: Tree) -> int | float | None:
    """The number that a tree stands for, None if it stands for something else."""
    if type(tree) is int:
        return tree
    if type(tree) is dict and len(tree) == 1:
        if type(tree.get("i")) is str:
            return int(tree["i"], 16)
        if type(tree.get("f")) is str:
            return float.fromhex(tree["f"])
    return None


def _tag(tree: Tree) -> tuple[str, Tree]:
    """Tag and body; a list has the empty tag."""
    if type(tree) is list:
        return "", tree
    ((tag, body),) = tree.items()
    return tag, body
