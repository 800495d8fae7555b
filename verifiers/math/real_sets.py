"""Unions, intersections and complements of pieces of the real line, with exact ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewardsvc.verifiers.arithmetic import RefusedError
from rewardsvc.verifiers.math.algebra import Algebra
from rewardsvc.verifiers.math.forms import INFINITY, End, RealSet, Scalar

_CLOSE = 25
"""Ends that agree to this many digits are compared exactly."""
MAX_PIECES = 64

Piece = tuple[End, End]


def end_at(value: Scalar, *, is_open: bool) -> End:
    """The end at a number.

    Raises:
        RefusedError: If it is no real number that can be placed on the line.
    """
    if value.expression is None or value.percent:
        raise RefusedError("an end that is no number")
    decimal = value.expression.decimal()
    if decimal is None:
        raise RefusedError("an end that is no number")
    return End(value=value, decimal=decimal, is_open=is_open)


def infinite_end(*, positive: bool) -> End:
    """The end at an infinity, open."""
    return End(value=None, decimal=INFINITY if positive else -INFINITY, is_open=True)


def interval(low: End, high: End) -> RealSet:
    """The piece between two ends; empty if they are in the wrong order.

    Raises:
        RefusedError: If an infinity is included.
    """
    for end in (low, high):
        if end.value is None and not end.is_open:
            raise RefusedError("an infinity is no number")
    return union([RealSet(pieces=((low, high),))])


def point(value: Scalar) -> RealSet:
    """The set of one number."""
    end = end_at(value, is_open=False)
    return RealSet(pieces=((end, end),))


def union(sets: Sequence[RealSet]) -> RealSet:
    """All that is in any of them, in as few pieces as possible."""
    pieces = [piece for one in sets for piece in one.pieces if _is_there(piece)]
    if len(pieces) > MAX_PIECES:
        raise RefusedError(f"a set of more than {MAX_PIECES} pieces")
    pieces.sort(key=lambda piece: (piece[0].decimal, piece[0].is_open))
    merged: list[Piece] = []
    for low, high in pieces:
        if merged and _touches(merged[-1][1], low):
            if _is_before(merged[-1][1], high):
                merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return RealSet(pieces=tuple(merged))


def intersection(left: RealSet, right: RealSet) -> RealSet:
    """All that is in both."""
    pieces = []
    for low, high in left.pieces:
        for other_low, other_high in right.pieces:
            later = other_low if _starts_later(other_low, low) else low
            earlier = other_high if _is_before(other_high, high) else high
            pieces.append((later, earlier))
    return union([RealSet(pieces=tuple(pieces))])


def complement(one: RealSet) -> RealSet:
    """All real numbers that are not in it."""
    pieces = []
    low = infinite_end(positive=False)
    for start, end in one.pieces:
        if start.value is not None:
            pieces.append((low, replace(start, is_open=not start.is_open)))
        low = replace(end, is_open=not end.is_open)
    if low.decimal != INFINITY:
        pieces.append((low, infinite_end(positive=True)))
    return union([RealSet(pieces=tuple(pieces))])


def mirrored(one: RealSet) -> RealSet:
    """The negatives of its numbers."""

    def negative(end: End) -> End:
        if end.value is None or end.value.expression is None:
            return replace(end, decimal=-end.decimal)
        expression = Algebra().negate(end.value.expression)
        value = replace(end.value, text=f"-({end.value.text})", expression=expression)
        return replace(end, value=value, decimal=-end.decimal)

    return RealSet(
        pieces=tuple((negative(high), negative(low)) for low, high in reversed(one.pieces))
    )


def _same_place(left: End, right: End) -> bool:
    """Whether two ends are the same number; exactly, where they are near each other."""
    if left.value is None or right.value is None:
        return left.decimal == right.decimal
    scale = max(abs(left.decimal), abs(right.decimal))
    if abs(left.decimal - right.decimal) > scale.scaleb(-_CLOSE):
        return False
    if left.value.expression is None or right.value.expression is None:
        return False
    return Algebra().equal(left.value.expression, right.value.expression) is True


def _is_there(piece: Piece) -> bool:
    low, high = piece
    if _same_place(low, high):
        return not low.is_open and not high.is_open
    return low.decimal < high.decimal


def _touches(high: End, low: End) -> bool:
    """Whether nothing lies between a high end and the low end of a later piece."""
    if _same_place(high, low):
        return not (high.is_open and low.is_open)
    return low.decimal < high.decimal


def _is_before(left: End, right: End) -> bool:
    """Whether a high end is before another."""
    if _same_place(left, right):
        return left.is_open and not right.is_open
    return left.decimal < right.decimal


def _starts_later(left: End, right: End) -> bool:
    """Whether a low end is after another."""
    if _same_place(left, right):
        return left.is_open and not right.is_open
    return left.decimal > right.decimal
