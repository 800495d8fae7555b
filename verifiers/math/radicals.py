"""Roots, logarithms and well-known sines of rational numbers, as sums of monomials.

A root of a rational number is a product of prime powers: √12 is 2·3^(1/2). Two such products are
the same number only if they are the same product.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import TypeAlias

from rewardsvc.verifiers.arithmetic import MAX_BITS, RefusedError

Monomial: TypeAlias = tuple[tuple[str, Fraction | int], ...]
"""Generators, in the order of their names, with exponents that are not 0. Whole ones should be
integers, whose hash costs a tenth of a fraction's."""

Terms: TypeAlias = Mapping[Monomial, Fraction]
"""A sum: coefficients that are not 0, by monomial."""

PI, EULER, IMAGINARY = "pi", "e", "i"
LOGARITHM = "ln"
_MAX_TRIAL_DIVISOR = 10_000
_MAX_FACTORED_BITS = 512


def rational_power(value: Fraction, exponent: Fraction) -> Terms:
    """A power with an exponent that is no integer; the principal one for a square root."""
    if not value:
        if exponent <= 0:
            raise RefusedError("0 to the power of 0 or less")
        return {}
    factor = Fraction(1)
    monomial: dict[str, Fraction | int] = {}
    num_bits = 0
    if value < 0:
        if exponent.denominator != 2:
            raise RefusedError("a root of a negative number")
        turns = exponent.numerator % 4
        factor = Fraction(-1 if turns == 3 else 1)
        monomial[IMAGINARY] = 1
    for prime, known in _factors(abs(value)).items():
        whole, part = divmod(known * exponent, 1)
        num_bits += abs(whole) * prime.bit_length()
        if num_bits > MAX_BITS:
            raise RefusedError(f"a number of more than {MAX_BITS} bits")
        factor *= Fraction(prime) ** int(whole)
        if part:
            monomial[str(prime)] = part
    return {tuple(sorted(monomial.items())): factor}


_HALF = Fraction(1, 2)
_TURNS: dict[Fraction, tuple[Fraction, int]] = {
    # cos(pi r) = factor * sqrt(radicand)
    Fraction(0): (Fraction(1), 1),
    Fraction(1, 6): (_HALF, 3),
    Fraction(1, 4): (_HALF, 2),
    Fraction(1, 3): (_HALF, 1),
    Fraction(1, 2): (Fraction(0), 1),
}


def cosine(half_turns: Fraction) -> Terms | None:
    """cos(pi * half_turns), where it is a multiple of a square root that everybody knows."""
    turned = half_turns % 2
    turned = min(turned, 2 - turned)
    sign = 1
    if turned > _HALF:
        turned, sign = 1 - turned, -1
    known = _TURNS.get(turned)
    if known is None:
        return None
    factor, radicand = known
    monomial: Monomial = () if radicand == 1 else ((str(radicand), _HALF),)
    return {monomial: sign * factor} if factor else {}


def sine(half_turns: Fraction) -> Terms | None:
    """sin(pi * half_turns); see `cosine`."""
    return cosine(half_turns - _HALF)


@lru_cache(maxsize=1024)
def _factors(value: Fraction) -> Mapping[int, int]:
    """Prime → exponent of a positive rational number."""
    found: dict[int, int] = {}
    for number, sign in ((value.numerator, 1), (value.denominator, -1)):
        for prime in _primes(number):
            found[prime] = found.get(prime, 0) + sign
    return found


def _primes(number: int) -> list[int]:
    if number.bit_length() > _MAX_FACTORED_BITS:
        raise RefusedError("a number too large to factorise")
    primes = []
    divisor = 2
    while divisor * divisor <= number and divisor <= _MAX_TRIAL_DIVISOR:
        while number % divisor == 0:
            primes.append(divisor)
            number //= divisor
        divisor += 1 if divisor == 2 else 2
    if number == 1:
        return primes
    if number < _MAX_TRIAL_DIVISOR**2:
        return [*primes, number]
    root = isqrt(number)
    if root * root == number:
        return [*primes, *_primes(root) * 2]
    raise RefusedError("a number too large to factorise")


def logarithm(value: Fraction) -> Terms:
    """The natural logarithm of a positive rational number.

    Raises:
        RefusedError: If it is not positive, or too large to factorise.
    """
    if value <= 0:
        raise RefusedError("the logarithm of a number that is not positive")
    return {
        ((f"{LOGARITHM}{prime}", 1),): Fraction(exponent)
        for prime, exponent in _factors(value).items()
    }


def odd_root(value: Fraction, degree: int) -> Terms:
    """The real root of odd degree of a rational number, negative for a negative one."""
    root = rational_power(abs(value), Fraction(1, degree))
    return root if value > 0 else {m: -c for m, c in root.items()}
