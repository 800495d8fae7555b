"""What functions make of expressions: exactly where that is well known, opaque elsewhere."""

from __future__ import annotations

from fractions import Fraction

from rewardsvc.verifiers.math.algebra import (
    Algebra,
    Expression,
    of_terms,
    opaque,
    rational,
    symbol,
)
from rewardsvc.verifiers.math.radicals import EULER, PI, cosine, logarithm, sine


def value_of(algebra: Algebra, name: str, argument: Expression, base: str = "") -> Expression:
    """The value of a function.

    Args:
        algebra: Whose budget it costs.
        name: As in LaTeX, without the backslash; `arcsin` also for an inverse that was written so.
        argument: Of the function.
        base: Of a logarithm or of its inverse, in digits; empty if none was written.

    Raises:
        RefusedError: If it has none there, or one out of hand.
    """
    turns = algebra.divide(argument, symbol(PI)).as_fraction()
    match name:
        case "sin" | "cos":
            known = None
            if turns is not None:
                known = sine(turns) if name == "sin" else cosine(turns)
            return opaque(f"{name}({argument.key()})") if known is None else of_terms(known)
        case "tan":
            return algebra.divide(
                value_of(algebra, "sin", argument), value_of(algebra, "cos", argument)
            )
        case "cot" | "sec" | "csc":
            inverse = {"cot": "tan", "sec": "cos", "csc": "sin"}[name]
            return algebra.invert(value_of(algebra, inverse, argument))
        case "exp":
            return algebra.power(symbol(EULER), argument)
        case "ln" | "log":
            return _logarithm(algebra, name, argument, base)
    return opaque(f"{name}_{base}({argument.key()})")


def _logarithm(algebra: Algebra, name: str, argument: Expression, base: str) -> Expression:
    value = argument.as_fraction()
    if argument == symbol(EULER) and name == "ln":
        return rational(Fraction(1))
    if value is None or (base and not base.isdigit()):
        return opaque(f"{name}_{base}({argument.key()})")
    found = of_terms(logarithm(value))
    if base:
        return algebra.divide(found, of_terms(logarithm(Fraction(int(base)))))
    # Nobody knows the base of a bare log, but whatever it is, log 4 is 2 log 2.
    return found if name == "ln" else algebra.multiply(found, opaque("log"))


def absolute_value(algebra: Algebra, value: Expression) -> Expression:
    """|value|; opaque if its sign is not known."""
    number = value.decimal()
    if number is None:
        return opaque(f"|{value.key()}|") if value.top else value
    return algebra.negate(value) if number < 0 else value
