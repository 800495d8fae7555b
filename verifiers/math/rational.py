"""Rational numbers in LaTeX or plain notation, read exactly.

Integers, decimals, `1,000`, `1e3`, `\\frac{1}{2}`, `3\\frac{1}{2}`, powers with integer exponents,
the four operations, parentheses and a percent sign; anything else is not for this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from rewardsvc.verifiers.arithmetic import MAX_DIGITS, RefusedError, Symbol, evaluate

_MAX_CHARS = 2_000
"""A longer text writes no number that anybody wants: it may have `MAX_DIGITS` digits and commas."""
_MAX_EXPONENT_DIGITS = 4
_MIN_ROUNDED_DIGITS = 6
"""A decimal with this many significant digits may stand for a number that rounds to it."""

_LEXEME = re.compile(
    r"""\s*(?:
      (?P<whole>[0-9]{1,30})\s?\\frac\s?(?:\{\s?(?P<num>[0-9]{1,30})\s?\}\s?
          \{\s?(?P<den>[0-9]{1,30})\s?\}|(?P<num1>[0-9])\s?(?P<den1>[0-9])(?![0-9]))
    | (?P<grouped>[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3})+(?:\.[0-9]+)?)(?![0-9,])
    | (?P<decimal>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9}(?![0-9]))?)
    | \\frac\s?(?P<top>[0-9])\s?(?P<bottom>[0-9])
    | (?P<frac>\\frac)(?=\s?\{)
    | (?P<times>\\(?:times|cdot|ast)(?![A-Za-z])|\*\*?)
    | (?P<over>\\div(?![A-Za-z])|/)
    | (?P<symbol>[-+^(){}])
    )""",
    re.ASCII | re.VERBOSE,
)
_PERCENT = re.compile(r"(?:\\?%|percent(?:age)?|pct)\Z", re.ASCII)
_PLAIN_DECIMAL = re.compile(r"-?\s?(?:0|[1-9][0-9]*)?\.([0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rational:
    """A number as it was written.

    Attributes:
        value: Exactly; of "50%" it is 50.
        percent: Whether a percent sign followed.
        places: Digits after the point if it is a plain decimal with enough significant digits to
            stand for what rounds to it; else 0.
    """

    value: Fraction
    percent: bool = False
    places: int = 0

    def equals(self, other: Rational) -> bool:
        """Whether the two are the same number.

        "50%" equals both 50 and 0.5, as references are written either way. A decimal of six or more
        significant digits equals what rounds to it, if that has no finite decimal of its own.
        """
        if self.value == other.value:
            return True
        if self.percent != other.percent:
            fraction, number = (self, other) if self.percent else (other, self)
            return fraction.value / 100 == number.value
        return self._stands_for(other) or other._stands_for(self)

    def _stands_for(self, other: Rational) -> bool:
        return (
            self.places > 0
            and not is_finite_decimal(other.value)
            and round(other.value, self.places) == self.value
        )


def parse_rational(text: str) -> Rational | None:
    """The number that a normalised text writes; None if it writes none, or one out of hand."""
    if len(text) > _MAX_CHARS:
        return None
    text, percent = split_percent(text)
    try:
        value = evaluate(_tokenize(text))
    except RefusedError:
        return None
    return Rational(value=value, percent=percent, places=decimal_places(text))


def split_percent(text: str) -> tuple[str, bool]:
    """A text without the percent sign at its end, and whether there was one."""
    # White space is stripped and not matched: looked for at each of many blanks, it would take the
    # square of their number.
    stripped = text.rstrip()
    percent = _PERCENT.search(stripped)
    return (stripped[: percent.start()].rstrip(), True) if percent else (text, False)


def decimal_places(text: str) -> int:
    """Digits after the point of a plain decimal of enough significant digits; else 0."""
    match = _PLAIN_DECIMAL.fullmatch(text.strip())
    if match is None:
        return 0
    significant = text.strip().lstrip("- 0.").replace(".", "")
    return len(match.group(1)) if len(significant) >= _MIN_ROUNDED_DIGITS else 0


def is_finite_decimal(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _tokenize(text: str) -> list[Symbol]:
    """Turns LaTeX into an infix token list; `\\frac{a}{b}` becomes `((a)/(b))`."""
    tokens: list[Symbol] = []
    braces: list[str] = []  # what each open brace is: group, top or bottom of a fraction
    next_brace = "group"
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _LEXEME.match(text, position)
        if match is None:
            raise RefusedError("not a rational number")
        position = match.end()
        kind, lexeme = str(match.lastgroup), match.group().strip()
        if next_brace != "group" and lexeme != "{":
            raise RefusedError("a fraction without two parts in braces")
        match kind:
            case "den" | "den1":
                numerator = match["num"] or match["num1"]
                tokens += _quotient(numerator, match[kind], Fraction(int(match["whole"])))
            case "bottom":
                tokens += _quotient(match["top"], match["bottom"], None)
            case "grouped" | "decimal":
                tokens.append(_number(match[kind].replace("{,}", "").replace(",", "")))
            case "frac":
                tokens.append("(")
                next_brace = "top"
            case "times":
                tokens.append("^" if lexeme == "**" else "*")
            case "over":
                tokens.append("/")
            case _ if lexeme == "{":
                braces.append(next_brace)
                next_brace = "group"
                tokens.append("(")
            case _ if lexeme == "}":
                if not braces:
                    raise RefusedError("'}' without '{'")
                tokens.append(")")
                match braces.pop():
                    case "top":
                        tokens.append("/")
                        next_brace = "bottom"
                    case "bottom":
                        tokens.append(")")
            case _:
                tokens.append(cast("Symbol", lexeme))
    if braces or next_brace != "group":
        raise RefusedError("'{' without '}'")
    return tokens


def _quotient(numerator: str, denominator: str, whole: Fraction | None) -> list[Symbol]:
    inner: list[Symbol] = [Fraction(int(numerator)), "/", Fraction(int(denominator))]
    return ["(", *inner, ")"] if whole is None else ["(", whole, "+", *inner, ")"]


def _number(text: str) -> Fraction:
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent.lstrip("+-0")) > _MAX_EXPONENT_DIGITS - 1:
        raise RefusedError(f"a number of more than {MAX_DIGITS} digits")
    return Fraction(text)
