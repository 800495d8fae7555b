"""Expressions in a normal form, so that sameness is decided by comparing data, exactly.

An expression is a fraction of two sums of monomials with rational coefficients. A monomial is a
product of generators with rational exponents: primes with an exponent between 0 and 1 (radicals),
`pi`, `e`, `i` with i² = −1, logarithms of primes, variables, and *opaque* things, such as `sin(x)`,
that nobody looks into.

Equal normal forms are equal expressions, always. Unequal ones are unequal if nothing is opaque:
distinct radicals are linearly independent over the rationals (Besicovitch, "On the linear
independence of fractional powers of integers", 1940), pi is transcendental, and no relation between
pi, e and logarithms is known (Schanuel's conjecture says that there is none).

Work is bounded: by the bits of a coefficient, and by a budget of coefficient products.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction

from rewardsvc.verifiers.arithmetic import MAX_BITS, RefusedError
from rewardsvc.verifiers.math.decimals import DIGITS, decimal_of
from rewardsvc.verifiers.math.radicals import (
    EULER,
    IMAGINARY,
    LOGARITHM,
    PI,
    Monomial,
    Terms,
    cosine,
    rational_power,
    sine,
)

_MAX_WORK = 12_000
"""Some 50 ms of a slow machine."""
_BITS_A_UNIT = 256
_COMPARED_A_UNIT = 8
"""Terms that are compared for what multiplying two costs."""
_MAX_EXPONENT = 10_000
_MAX_NAME_CHARS = 64
"""Of an opaque thing; a longer name is replaced by its digest. Powers of sums write a name many
times, so that names of names would grow exponentially."""
_NAME_DIGEST_BYTES = 16


_shared_budget: ContextVar[list[int] | None] = ContextVar("_shared_budget", default=None)


@dataclass(frozen=True, slots=True)
class Expression:
    """A fraction of two sums; the denominator is not 0.

    Attributes:
        top: The numerator.
        bottom: The denominator.
        is_opaque: Whether unequal normal forms may be equal expressions all the same.
    """

    top: Terms
    bottom: Terms
    is_opaque: bool = False

    def as_fraction(self) -> Fraction | None:
        """The value, if it is a rational number."""
        if not self.top:
            return Fraction(0)
        if len(self.top) == 1 and len(self.bottom) == 1:
            [(over, a)], [(under, b)] = self.top.items(), self.bottom.items()
            return a / b if over == under else None
        return None

    def names(self) -> set[str]:
        """The generators in it."""
        sums = (self.top, self.bottom)
        return {name for terms in sums for monomial in terms for name, _ in monomial}

    def is_constant(self) -> bool:
        """Whether it is a number: nothing is opaque and nothing variable."""
        return not self.is_opaque and all(map(_is_constant, self.names()))

    def decimal(self) -> Decimal | None:
        """The value to about 30 digits, if it is a real number and no accident of cancellation."""
        if not self.is_constant() or IMAGINARY in self.names():
            return None
        try:
            with localcontext(Context(prec=DIGITS)):
                top, bottom = decimal_of(self.top), decimal_of(self.bottom)
                return None if top is None or not bottom else top / bottom
        except ArithmeticError:  # beyond what a decimal holds
            return None

    def key(self) -> str:
        """A text that equal expressions share in most cases, and unequal ones never."""
        return f"{_key(self.top)}/{_key(self.bottom)}" if self.bottom != _ONE else _key(self.top)


@contextmanager
def one_budget() -> Iterator[None]:
    """Within it all algebras share one budget, so that a hundred expressions cost no more.

    Within another one it changes nothing.
    """
    if _shared_budget.get() is not None:
        yield
        return
    token = _shared_budget.set([_MAX_WORK])
    try:
        yield
    finally:
        _shared_budget.reset(token)


class Algebra:
    """Operations on expressions, with a budget. All raise `RefusedError` when it is used up."""

    def __init__(self) -> None:
        self._budget = _shared_budget.get() or [_MAX_WORK]

    def add(self, left: Expression, right: Expression) -> Expression:
        """left + right."""
        self.charge(len(left.top) + len(right.top))
        opaque = left.is_opaque or right.is_opaque
        if left.bottom == right.bottom:
            return Expression(_sum(left.top, right.top), left.bottom, opaque)
        top = _sum(self._product(left.top, right.bottom), self._product(right.top, left.bottom))
        return _reduced(top, self._product(left.bottom, right.bottom), opaque)

    def negate(self, value: Expression) -> Expression:
        """-value."""
        return Expression({m: -c for m, c in value.top.items()}, value.bottom, value.is_opaque)

    def subtract(self, left: Expression, right: Expression) -> Expression:
        """left - right."""
        return self.add(left, self.negate(right))

    def multiply(self, left: Expression, right: Expression) -> Expression:
        """left * right."""
        return _reduced(
            self._product(left.top, right.top),
            self._product(left.bottom, right.bottom),
            left.is_opaque or right.is_opaque,
        )

    def invert(self, value: Expression) -> Expression:
        """1 / value."""
        if not value.top:
            raise RefusedError("division by zero")
        return _reduced(value.bottom, value.top, value.is_opaque)

    def divide(self, left: Expression, right: Expression) -> Expression:
        """left / right."""
        return self.multiply(left, self.invert(right))

    def power(self, base: Expression, exponent: Expression) -> Expression:
        """base ** exponent; opaque if it is no number and no power of a single variable."""
        number = exponent.as_fraction()
        if number is None:
            turned = _turn(base, self.divide(exponent, _I_PI))
            return turned or opaque(f"({base.key()})^({exponent.key()})")
        if abs(number) > _MAX_EXPONENT:
            raise RefusedError(f"an exponent beyond {_MAX_EXPONENT}")
        if number.denominator == 1:
            return self._integer_power(base, number.numerator)
        value = base.as_fraction()
        if value is not None:
            return of_terms(rational_power(value, number))
        if base.bottom == _ONE and len(base.top) == 1:
            [(monomial, coefficient)] = base.top.items()
            if len(monomial) == 1 and coefficient > 0 and monomial[0][0] != IMAGINARY:
                [(name, known)] = monomial
                real = _is_constant(name) or known == 1
                if real and not name.isdigit():
                    return self.multiply(
                        of_terms(rational_power(coefficient, number)),
                        Expression(
                            {((name, _plain(known * number)),): _UNIT}, _ONE, base.is_opaque
                        ),
                    )
        return opaque(f"({base.key()})^({number})")

    def equal(self, left: Expression, right: Expression) -> bool | None:
        """Whether two expressions are the same; None if that is not known."""
        if left.bottom == right.bottom:
            self.charge((len(left.top) + len(right.top)) // _COMPARED_A_UNIT)
            if left.top == right.top:
                return True
            return None if left.is_opaque or right.is_opaque else False
        self.charge(len(left.top) + len(right.top))
        difference = _sum(
            self._product(left.top, right.bottom),
            {m: -c for m, c in self._product(right.top, left.bottom).items()},
        )
        if not difference:
            return True
        return None if left.is_opaque or right.is_opaque else False

    def proportional(self, left: Expression, right: Expression) -> bool:
        """Whether left = c * right for a rational c that is not 0."""
        if not left.top or not right.top or left.top.keys() != right.top.keys():
            return not left.top and not right.top
        first = next(iter(left.top))
        ratio = left.top[first] / right.top[first]
        return all(left.top[m] == ratio * c for m, c in right.top.items())

    def charge(self, work: int) -> None:
        """Takes work off the budget: one is about what multiplying two coefficients costs."""
        self._budget[0] -= work
        if self._budget[0] < 0:
            raise RefusedError("an expression that is too large")

    def _integer_power(self, base: Expression, exponent: int) -> Expression:
        if exponent < 0:
            return self._integer_power(self.invert(base), -exponent)
        value = base.as_fraction()
        if value is not None:
            if not value and not exponent:
                raise RefusedError("0 to the power of 0")
            if abs(value) not in (0, 1) and exponent * (_bits(value) - 1 or 1) > MAX_BITS:
                raise RefusedError(f"a number of more than {MAX_BITS} bits")
            return rational(value**exponent)
        if len(base.top) == len(base.bottom) == 1 and not _has_radical(base):
            return Expression(
                _monomial_power(base.top, exponent),
                _monomial_power(base.bottom, exponent),
                base.is_opaque,
            )
        result = rational(Fraction(1))
        while exponent:
            if exponent & 1:
                result = self.multiply(result, base)
            exponent >>= 1
            if exponent:
                base = self.multiply(base, base)
        return result

    def _product(self, left: Terms, right: Terms) -> Terms:
        if left == _ONE:
            return right
        if right == _ONE:
            return left
        bits = max((_bits(c) for terms in (left, right) for c in terms.values()), default=0)
        if bits > MAX_BITS:
            raise RefusedError(f"a number of more than {MAX_BITS} bits")
        self.charge(len(left) * len(right) * (1 + bits // _BITS_A_UNIT))
        result: dict[Monomial, Fraction] = {}
        for monomial, coefficient in left.items():
            for other, factor in right.items():
                extra, product = _times(monomial, other)
                value = coefficient * factor
                _accumulate(result, product, value if extra == 1 else value * extra)
        return result


def rational(value: Fraction) -> Expression:
    """A rational number."""
    return Expression({(): value} if value else {}, _ONE)


def of_terms(terms: Terms) -> Expression:
    """A sum as an expression."""
    return Expression(terms, _ONE)


def symbol(name: str) -> Expression:
    """A generator: `PI`, `EULER`, `IMAGINARY` or a variable."""
    return Expression({((name, 1),): _UNIT}, _ONE)


def opaque(name: str) -> Expression:
    """Something of which only the name is known; the same name is the same thing."""
    if len(name) > _MAX_NAME_CHARS:
        data = name.encode("utf-8", "surrogatepass")
        name = hashlib.blake2b(data, digest_size=_NAME_DIGEST_BYTES).hexdigest()
    return Expression({((f"<{name}>", 1),): _UNIT}, _ONE, True)


_UNIT = Fraction(1)
_ONE: Terms = {(): _UNIT}
_I_PI = Expression({((IMAGINARY, 1), (PI, 1)): _UNIT}, _ONE)


def _is_constant(name: str) -> bool:
    return name in (PI, EULER, IMAGINARY) or name.isdigit() or name.startswith(LOGARITHM)


def _has_radical(value: Expression) -> bool:
    return any(name.isdigit() or name == IMAGINARY for name in value.names())


def _monomial_power(terms: Terms, exponent: int) -> Terms:
    [(monomial, coefficient)] = terms.items()
    if exponent * (_bits(coefficient) - 1) > MAX_BITS:
        raise RefusedError(f"a number of more than {MAX_BITS} bits")
    power = tuple((name, known * exponent) for name, known in monomial) if exponent else ()
    return {power: coefficient**exponent}


def _reduced(top: Terms, bottom: Terms, is_opaque: bool) -> Expression:
    """The fraction without a number in its denominator."""
    if len(bottom) == 1:
        [(monomial, divisor)] = bottom.items()
        if divisor != 1:
            top = {m: c / divisor for m, c in top.items()}
            bottom = {monomial: Fraction(1)}
    return Expression(top, bottom, is_opaque)


def _sum(left: Terms, right: Terms) -> Terms:
    result = dict(left)
    for monomial, coefficient in right.items():
        _accumulate(result, monomial, coefficient)
    return result


def _accumulate(terms: dict[Monomial, Fraction], monomial: Monomial, value: Fraction) -> None:
    known = terms.get(monomial)
    total = value if known is None else known + value
    if _bits(total) > MAX_BITS:  # sums of fractions grow as products do
        raise RefusedError(f"a number of more than {MAX_BITS} bits")
    if total:
        terms[monomial] = total
    else:
        terms.pop(monomial, None)


def _plain(exponent: Fraction | int) -> Fraction | int:
    """An exponent, as an integer if it is one."""
    return exponent if type(exponent) is int or exponent.denominator > 1 else int(exponent)


def _times(left: Monomial, right: Monomial) -> tuple[int, Monomial]:
    """The product of two monomials, and the integer that falls out of its radicals."""
    factor = 1
    if not left or not right:
        return factor, left or right
    exponents = dict(left)
    for name, exponent in right:
        total = _plain(exponents.get(name, 0) + exponent)
        if name.isdigit() and total >= 1:
            factor *= int(name)
            total -= 1
        elif name == IMAGINARY and total >= 2:
            factor, total = -factor, total - 2
        if total:
            exponents[name] = total
        else:
            exponents.pop(name, None)
    return factor, tuple(sorted(exponents.items()))


def _turn(base: Expression, half_turns: Expression) -> Expression | None:
    """e^(i pi r); None for another base, or an r that is not well known."""
    turns = half_turns.as_fraction()
    if turns is None or base != symbol(EULER):
        return None
    real, imaginary = cosine(turns), sine(turns)
    if real is None or imaginary is None:
        return None
    algebra = Algebra()
    return algebra.add(of_terms(real), algebra.multiply(of_terms(imaginary), symbol(IMAGINARY)))


def _key(terms: Terms) -> str:
    # Hexadecimal: Python refuses to write long numbers in decimal digits.
    parts = (
        f"{coefficient.numerator:x}/{coefficient.denominator:x}"
        + "".join(f"*{name}^{exponent}" for name, exponent in monomial)
        for monomial, coefficient in terms.items()
    )
    return "+".join(sorted(parts)) or "0"


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
