"""Exact arithmetic on rational numbers, for expressions that a stranger wrote.

Shunting-yard over a list of symbols: no `eval`, no recursion, no intermediate result larger than
`MAX_BITS`, so that neither deep nesting nor towers of powers cost anything. Tokenizers differ by
notation (`countdown` reads plain digits only, `math.rational` reads LaTeX) and live with their
verifiers.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Literal, TypeAlias

MAX_BITS = 8192
"""A numerator or denominator of more bits than this is refused."""

MAX_DIGITS = 1000
"""A number written with more digits than this is refused."""

Operator: TypeAlias = Literal["+", "-", "*", "/", "^"]
Symbol: TypeAlias = "Fraction | Operator | Literal['(', ')']"

_PRECEDENCE: dict[str, int] = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "pos": 3, "^": 4}
_SIGNS = {"+": "pos", "-": "neg"}


class RefusedError(ValueError):
    """The expression has no value, or none that is worth computing. The message says why."""


def evaluate(symbols: Iterable[Symbol]) -> Fraction:
    """The value of an infix expression.

    `^` binds tighter than a sign before it and groups to the right; signs are allowed in front of
    any operand.

    Raises:
        RefusedError: If it is malformed, divides by zero, has a power that is not an integer, or
            gets out of hand.
    """
    values: list[Fraction] = []
    operators: list[str] = []
    wants_operand = True
    for symbol in symbols:
        if isinstance(symbol, Fraction):
            if not wants_operand:
                raise RefusedError("two numbers without an operator between them")
            values.append(symbol)
            wants_operand = False
        elif symbol == "(":
            if not wants_operand:
                raise RefusedError("'(' where an operator should be")
            operators.append(symbol)
        elif wants_operand and symbol in _SIGNS:
            operators.append(_SIGNS[symbol])
        elif wants_operand:
            raise RefusedError(f"{symbol!r} where a number should be")
        elif symbol == ")":
            while operators and operators[-1] != "(":
                _apply(operators.pop(), values)
            if not operators:
                raise RefusedError("')' without '('")
            operators.pop()
        else:
            while operators and _binds_first(operators[-1], symbol):
                _apply(operators.pop(), values)
            operators.append(symbol)
            wants_operand = True
    if wants_operand:
        raise RefusedError("it ends where a number should be")
    while operators:
        if operators[-1] == "(":
            raise RefusedError("'(' without ')'")
        _apply(operators.pop(), values)
    return values[0]


def _binds_first(waiting: str, incoming: str) -> bool:
    if waiting == "(":
        return False
    if incoming == "^":
        return False  # groups to the right, and nothing binds tighter
    return _PRECEDENCE[waiting] >= _PRECEDENCE[incoming]


def _apply(operator: str, values: list[Fraction]) -> None:
    right = values.pop()
    if operator == "neg":
        values.append(-right)
        return
    if operator == "pos":
        values.append(right)
        return
    left = values.pop()
    match operator:
        case "+":
            result = left + right
        case "-":
            result = left - right
        case "*":
            result = left * right
        case "/":
            if not right:
                raise RefusedError("division by zero")
            result = left / right
        case _:
            result = _power(left, right)
    if _bits(result) > MAX_BITS:
        raise RefusedError(f"a number of more than {MAX_BITS} bits")
    values.append(result)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise RefusedError("a power that is not an integer")
    if not base and exponent <= 0:
        raise RefusedError("0 to the power of 0 or less")
    # The bound comes before the work: 9^(9^9) must not be computed to find that it is too large.
    if abs(base) not in (0, 1) and abs(exponent) * (_bits(base) - 1 or 1) > MAX_BITS:
        raise RefusedError(f"a number of more than {MAX_BITS} bits")
    return Fraction(base**exponent.numerator)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
