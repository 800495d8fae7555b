"""LaTeX and plain notation to expressions: a grammar of its own, bounded in depth and in work.

It reads what it is sure of and refuses the rest, which then goes to the computer algebra system:
`1/2x` might be either of two things, `f(x)` a product or a value, `\\frac{3}{2}` after a digit a
mixed number or a factor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import comb, factorial

from rewardsvc.verifiers.arithmetic import RefusedError
from rewardsvc.verifiers.math.algebra import Algebra, Expression, of_terms, rational, symbol
from rewardsvc.verifiers.math.functions import absolute_value, value_of
from rewardsvc.verifiers.math.radicals import IMAGINARY, PI, odd_root
from rewardsvc.verifiers.math.tokens import read_number, read_recurring, tokens_of

MAX_CHARS = 2_000
_MAX_DEPTH = 60
_MAX_FACTORIAL = 170
_MAX_ROOT = 100

_INDEX_LETTERS = re.compile(r"(?<![A-Za-z\\])[jkmn](?![A-Za-z])|_", re.ASCII)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_FUNCTION_LETTERS = frozenset("fghFGHPQW")


def has_index_letters(text: str) -> bool:
    """Whether `i` is more likely an index, like the letters beside it, than the imaginary unit."""
    return _INDEX_LETTERS.search(text) is not None


def read_expression(text: str, *, index_i: bool = False) -> Expression:
    """The expression that a normalised text writes.

    Args:
        text: At most `MAX_CHARS` characters.
        index_i: Whether `i` is a variable like any other, not the imaginary unit.

    Raises:
        RefusedError: If it writes none, more than one, or one out of hand.
    """
    if len(text) > MAX_CHARS:
        raise RefusedError(f"an expression of {len(text)} characters")
    return _Reader(tokens_of(text), index_i).read()


class _Reader:
    """Recursive descent, with a depth that is bounded."""

    def __init__(self, tokens: list[tuple[str, str]], index_i: bool) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0
        self._open_bars = 0
        self._index_i = index_i
        self._algebra = Algebra()

    def read(self) -> Expression:
        value = self._sum()
        if self._position < len(self._tokens):
            raise RefusedError(f"{self._text()!r} where the expression should end")
        return value

    def _kind(self, ahead: int = 0) -> str:
        place = self._position + ahead
        return self._tokens[place][0] if place < len(self._tokens) else ""

    def _text(self, ahead: int = 0) -> str:
        place = self._position + ahead
        return self._tokens[place][1] if place < len(self._tokens) else ""

    def _take(self) -> str:
        text = self._text()
        self._position += 1
        return text

    def _expect(self, text: str) -> None:
        if self._take() != text:
            raise RefusedError(f"{text!r} is missing")

    def _sum(self) -> Expression:
        value = self._signed(self._product)
        while self._text() in ("+", "-"):
            negative = self._take() == "-"
            term = self._signed(self._product)
            value = self._algebra.add(value, self._algebra.negate(term) if negative else term)
        return value

    def _signed(self, operand: Callable[[], Expression]) -> Expression:
        negative = False
        while self._text() in ("+", "-"):
            negative ^= self._take() == "-"
        value = operand()
        return self._algebra.negate(value) if negative else value

    def _product(self) -> Expression:
        start = self._position
        value = self._factor()
        divided = False
        while True:
            if self._text() == "*":
                self._take()
                value = self._algebra.multiply(value, self._signed(self._factor))
            elif self._text() == "/":
                self._take()
                value = self._algebra.divide(value, self._signed(self._factor))
                divided = True
            elif self._starts_factor():
                if divided or self._kind() == "number":
                    raise RefusedError("a factor without a sign that might belong elsewhere")
                if self._text() == "\\frac" and self._kind(-1) == "number":
                    value = self._mixed(value, alone=self._position == start + 1)
                else:
                    value = self._algebra.multiply(value, self._factor())
            else:
                return value

    def _mixed(self, whole: Expression, *, alone: bool) -> Expression:
        """`3\\frac{1}{2}` is three and a half, `3\\frac{x}{2}` a product."""
        start = self._position + 1
        part = self._factor()
        fraction = part.as_fraction()
        if fraction is None or any(k == "command" for k, _ in self._tokens[start : self._position]):
            return self._algebra.multiply(whole, part)
        if not alone or not 0 < fraction < 1:
            raise RefusedError("a fraction after a number that might be a factor")
        return self._algebra.add(whole, part)

    def _starts_factor(self) -> bool:
        kind, text = self._kind(), self._text()
        if kind == "bar":
            return not self._open_bars
        if kind == "bracket":
            return text in _CLOSING
        return kind in ("number", "recurring", "function", "word", "name") or (
            kind == "command" and text not in ("\\circ", "\\degree", "°")
        )

    def _factor(self) -> Expression:
        value = self._atom()
        while True:
            if self._text() == "^" and self._text(1) == "\\circ":
                self._position += 2
                value = self._degrees(value)
            elif self._text() == "^" and [self._text(n) for n in (1, 2, 3)] == ["{", "\\circ", "}"]:
                self._position += 4
                value = self._degrees(value)
            elif self._text() in ("\\degree", "°"):
                self._take()
                value = self._degrees(value)
            elif self._text() == "^":
                self._take()
                value = self._algebra.power(value, self._exponent())
            elif self._text() == "!":
                self._take()
                value = rational(Fraction(factorial(_small(value, _MAX_FACTORIAL))))
            else:
                return value

    def _degrees(self, value: Expression) -> Expression:
        half_turn = self._algebra.multiply(symbol(PI), rational(Fraction(1, 180)))
        return self._algebra.multiply(value, half_turn)

    def _exponent(self) -> Expression:
        with self._one_deeper():
            value = self._signed(self._atom)
            if self._text() == "^":
                self._take()
                value = self._algebra.power(value, self._exponent())
        return value

    @contextmanager
    def _one_deeper(self) -> Iterator[None]:
        """Around whatever may contain itself, with brackets or, as in `\\sqrt\\sqrt 2`, without."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise RefusedError("an expression that is too deep")
        yield
        self._depth -= 1

    def _atom(self) -> Expression:
        with self._one_deeper():
            return self._one_atom()

    def _one_atom(self) -> Expression:
        kind, text = self._kind(), self._take()
        match kind:
            case "number":
                return rational(read_number(text))
            case "recurring":
                return rational(read_recurring(text))
            case "name":
                return self._name(text)
            case "function":
                return self._function(text.removeprefix("\\"))
            case "word" if text == "pi":
                return symbol(PI)
            case "word" if text == "sqrt":
                return self._root(2)
            case "word" if text == "abs":
                return absolute_value(self._algebra, self._bracketed())
            case "word":
                return self._function(text)
            case "command":
                return self._command(text)
            case "bar":
                self._open_bars += 1
                inside = self._sum()
                self._open_bars -= 1
                self._expect("|")
                return absolute_value(self._algebra, inside)
            case "bracket" if text in _CLOSING:
                self._position -= 1
                return self._bracketed()
        raise RefusedError(f"{text!r} where a number should be")

    def _bracketed(self) -> Expression:
        closing = _CLOSING.get(self._take())
        if closing is None:
            raise RefusedError("a bracket is missing")
        bars, self._open_bars = self._open_bars, 0
        value = self._sum()
        self._open_bars = bars
        self._expect(closing)
        return value

    def _name(self, text: str) -> Expression:
        name = re.sub(r"[{}\s]", "", text)
        if name == "i":
            return symbol("i_" if self._index_i else IMAGINARY)
        if name in _FUNCTION_LETTERS and self._text() == "(":
            raise RefusedError(f"{name}( might be a value of a function")
        return symbol(name)

    def _command(self, text: str) -> Expression:
        match text:
            case "\\frac":
                top = self._argument()
                return self._algebra.divide(top, self._argument())
            case "\\sqrt":
                degree = 2
                if self._text() == "[":
                    degree = _small(self._bracketed(), _MAX_ROOT)
                return self._root(degree)
            case "\\pi":
                return symbol(PI)
            case "\\binom" | "\\dbinom" | "\\tbinom":
                among = _small(self._argument(), _MAX_FACTORIAL)
                return rational(Fraction(comb(among, _small(self._argument(), _MAX_FACTORIAL))))
        raise RefusedError(f"{text!r} where a number should be")

    def _argument(self) -> Expression:
        """What follows `\\frac`: a group, or one digit or symbol."""
        kind, text = self._kind(), self._text()
        if kind == "number" and len(text) > 1:
            if not text.isdigit():
                raise RefusedError("a decimal as an argument without braces")
            self._tokens[self._position] = (kind, text[1:])
            return rational(Fraction(int(text[0])))
        return self._atom()

    def _root(self, degree: int) -> Expression:
        if self._kind() == "number" and len(self._text()) > 1:
            raise RefusedError("a root of several digits without braces")
        inside = self._atom()
        value = inside.as_fraction()
        if not degree:
            raise RefusedError("a root of degree 0")
        if value is not None and value < 0 and degree % 2:
            return of_terms(odd_root(value, degree))
        return self._algebra.power(inside, rational(Fraction(1, degree)))

    def _function(self, text: str) -> Expression:
        name, _, base = text.partition("_")
        power = None
        if self._text() == "^":
            self._take()
            power = self._exponent()
        argument = self._function_argument()
        if power is not None and power.as_fraction() == -1:
            name, power = f"arc{name}", None
        value = value_of(self._algebra, name, argument, base.strip("{} "))
        return value if power is None else self._algebra.power(value, power)

    def _function_argument(self) -> Expression:
        """A group in brackets, or the product of what stands before an operator: `sin 2x cos x`."""
        if self._kind() == "bracket" and self._text() in _CLOSING:
            value = self._bracketed()
            if self._text() in ("^", "!"):
                raise RefusedError("a power after the argument of a function")
            return value
        if not self._starts_factor() or self._kind() in ("function", "bar"):
            raise RefusedError("a function without an argument")
        value = self._factor()
        while self._starts_factor() and self._kind() not in ("function", "word", "bar", "number"):
            if self._text() == "(":
                raise RefusedError("a bracket that may or may not belong to an argument")
            value = self._algebra.multiply(value, self._factor())
        if self._text() == "/":
            raise RefusedError("a quotient that may or may not belong to an argument")
        return value


def _small(value: Expression, limit: int) -> int:
    number = value.as_fraction()
    if number is None or number.denominator != 1 or not 0 <= number <= limit:
        raise RefusedError(f"a number that is no integer from 0 to {limit}")
    return int(number)
