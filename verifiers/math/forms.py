"""What an answer may be beside a number: a set, a point, an interval, a matrix, an equation.

Each form is data; `same` compares two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import TypeAlias

from rewardsvc.verifiers.math.algebra import Expression

INFINITY = Decimal("Infinity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One expression.

    Attributes:
        text: As it was written, without what does not matter.
        expression: In normal form; None if it is beyond the reader.
        percent: Whether a percent sign followed.
        places: Digits after the point if it is a decimal with enough significant digits to stand
            for what rounds to it; else 0.
    """

    text: str
    expression: Expression | None
    percent: bool = False
    places: int = 0


class Grouping(StrEnum):
    """How several things are held together."""

    ROUND = "(…)"
    SQUARE = "[…]"
    BRACES = "{…}"
    ANGLE = "<…>"
    LIST = "a list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Several things: a point, a set, a list.

    Attributes:
        grouping: By what brackets, if any.
        items: In the order in which they were written.
    """

    grouping: Grouping
    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Where a piece of the real line ends.

    Attributes:
        value: The number as it was written; None for an infinity.
        decimal: Where that is, to about 30 digits.
        is_open: Whether the end itself is left out.
    """

    value: Scalar | None
    decimal: Decimal
    is_open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RealSet:
    """A set of real numbers.

    Attributes:
        pieces: Low and high ends, in increasing order, without overlaps; a single point has both
            ends closed and equal.
    """

    pieces: tuple[tuple[End, End], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Rows of the same length.

    Attributes:
        rows: The entries.
    """

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """`7:32`.

    Attributes:
        parts: Two or more numbers.
        may_be_a_time: Whether it might be a time of day, which cannot be reduced.
    """

    parts: tuple[Scalar, ...]
    may_be_a_time: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """`x = 3`, `f(x) = 2x`, `x \\in [0, 1]`: something and what it is.

    Attributes:
        names: All names it is given, without spaces.
        form: What it is.
        rounded: A decimal that was said to be approximately the same, and is.
    """

    names: tuple[str, ...]
    form: Form
    rounded: Form | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """An equation that is not solved for a name.

    Attributes:
        difference: Left side minus right side; None if it is beyond the reader.
        text: As it was written.
    """

    difference: Expression | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """Something beyond the reader.

    Attributes:
        text: As it was written, without what does not matter.
        why: Set if it can be no right answer: it contradicts itself, or is not solved.
    """

    text: str
    why: str = ""


Form: TypeAlias = Scalar | Group | RealSet | Matrix | Ratio | Named | Equation | Unreadable

EMPTY = RealSet(pieces=())
REAL_LINE = RealSet(
    pieces=(
        (
            End(value=None, decimal=-INFINITY, is_open=True),
            End(value=None, decimal=INFINITY, is_open=True),
        ),
    )
)


def fraction_of(form: Form) -> Fraction | None:
    """The value of a form that is a rational number."""
    if not isinstance(form, Scalar) or form.expression is None:
        return None
    return form.expression.as_fraction()
