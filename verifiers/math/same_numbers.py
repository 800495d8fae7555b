"""Whether two expressions are the same, exactly or as one rounds to the other; see `same`."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction

from rewardsvc.verifiers.math.algebra import Algebra, Expression, rational
from rewardsvc.verifiers.math.forms import Ratio, Scalar
from rewardsvc.verifiers.math.rational import is_finite_decimal

_PRECISION = 60


def same_scalar(reference: Scalar, answer: Scalar) -> bool | None:
    """Whether two expressions are the same.

    "50%" is both 50 and 0.5, as references are written either way. A decimal of six or more
    significant digits is what rounds to it, if that has no finite decimal of its own.
    """
    if reference.text == answer.text:
        return True
    left, right = reference.expression, answer.expression
    if left is None or right is None:
        return None
    algebra = Algebra()
    verdict = algebra.equal(left, right)
    if verdict is not True and reference.percent != answer.percent:
        hundredth = rational(Fraction(1, 100))
        if reference.percent:
            verdict = algebra.equal(algebra.multiply(left, hundredth), right)
        else:
            verdict = algebra.equal(left, algebra.multiply(right, hundredth))
    elif verdict is False and (_stands_for(reference, right) or _stands_for(answer, left)):
        return True
    return verdict


def _stands_for(rounded: Scalar, exact: Expression) -> bool:
    if not rounded.places or rounded.expression is None:
        return False
    fraction, value = exact.as_fraction(), exact.decimal()
    if value is None or (fraction is not None and is_finite_decimal(fraction)):
        return False
    stated = rounded.expression.as_fraction()
    if stated is None or value.adjusted() + rounded.places > _PRECISION // 2:
        return False
    with localcontext(Context(prec=_PRECISION)):
        unit = Decimal(1).scaleb(-rounded.places)
        return Fraction(value.quantize(unit, ROUND_HALF_EVEN)) == stated


def cross_equal(first: Scalar, other: Scalar, left: Scalar, right: Scalar) -> bool | None:
    """Whether first : left is other : right."""
    expressions = [first.expression, right.expression, other.expression, left.expression]
    read = [expression for expression in expressions if expression is not None]
    if len(read) < len(expressions) or not all(expression.top for expression in read):
        return None
    algebra = Algebra()
    return algebra.equal(algebra.multiply(read[0], read[1]), algebra.multiply(read[2], read[3]))


def same_quotient(ratio: Ratio, scalar: Scalar) -> bool | None:
    """Whether a ratio of two parts is a number."""
    if len(ratio.parts) != 2:
        return False
    left, right = (part.expression for part in ratio.parts)
    if left is None or right is None or scalar.expression is None or not right.top:
        return None
    algebra = Algebra()
    return algebra.equal(algebra.divide(left, right), scalar.expression)
