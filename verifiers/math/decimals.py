"""Decimal values of sums of constants, to about thirty digits."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from functools import lru_cache

from rewardsvc.verifiers.math.radicals import EULER, LOGARITHM, PI, Terms

DIGITS = 60
_LOST_DIGITS = 25
"""A sum that cancels more digits than this has no reliable decimal value."""
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def decimal_of(terms: Terms) -> Decimal | None:
    """The value of a sum of constants in the current context; None if it is no reliable one."""
    total, largest = Decimal(0), Decimal(0)
    for monomial, coefficient in terms.items():
        value = Decimal(coefficient.numerator) / Decimal(coefficient.denominator)
        for name, exponent in monomial:
            value *= _value_of(name) ** (Decimal(exponent.numerator) / exponent.denominator)
        total += value
        largest = max(largest, abs(value))
    if terms and (not total or abs(total) < largest.scaleb(-_LOST_DIGITS)):
        return None  # also what is too small for a decimal
    return total


@lru_cache(maxsize=256)
def _value_of(name: str) -> Decimal:
    with localcontext(Context(prec=DIGITS)):
        if name == PI:
            return _PI
        if name == EULER:
            return Decimal(1).exp()
        if name.startswith(LOGARITHM):
            return Decimal(name.removeprefix(LOGARITHM)).ln()
        return Decimal(name)
