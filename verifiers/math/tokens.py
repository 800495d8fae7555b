"""The symbols that expressions are written in: text to tokens, and numerals to numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from rewardsvc.verifiers.arithmetic import MAX_DIGITS, RefusedError

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|"
    "rho|sigma|tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|"
    "Omega|ell"
)
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<recurring>[0-9]*\.[0-9]*\\(?:overline|bar|dot)\s?(?:\{{[0-9]{{1,20}}\}}|[0-9])
          (?:[0-9]{{0,18}}\\dot\s?(?:\{{[0-9]\}}|[0-9]))?)
    | (?P<number>(?:[1-9][0-9]{{0,2}}(?:(?:,|\{{,\}})[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?
          |\.[0-9]+)
          (?P<scale>[eE][+-]?[0-9]{{1,3}}(?![0-9.]))?
    | (?P<function>\\(?:log_\s?(?:[0-9]|\{{\s?[0-9]{{1,9}}\s?\}})
          |(?:sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan|sinh|cosh|tanh)(?![A-Za-z])))
    | (?P<word>sqrt|pi|sin|cos|tan|ln|log|exp|abs)(?![A-Za-z])
    | (?P<name>(?:[A-Za-z]|\\(?:{_GREEK})(?![A-Za-z]))
          (?:_\s?(?:[A-Za-z0-9]|\{{\s?[A-Za-z0-9]{{1,8}}\s?\}}))?)
    | (?P<operator>\\(?:times|cdot|ast)(?![A-Za-z])|\*\*?|\\div(?![A-Za-z])|[-+/^!])
    | (?P<bar>\\[lr]?vert(?![A-Za-z])|\||\\\|)
    | (?P<command>\\(?:frac|sqrt|pi|circ|binom|dbinom|tbinom|degree)(?![A-Za-z])|°)
    | (?P<bracket>[][(){{}}])
    )""",
    re.ASCII | re.VERBOSE,
)
"""What may follow one another in an expression; the names of the groups are the kinds of tokens."""
_UPRIGHT = re.compile(r"\\(?:mathrm|text|mathit|textrm)\s?\{\s?([A-Za-z])\s?\}", re.ASCII)
_SPELLINGS = {"**": "^", "\\times": "*", "\\cdot": "*", "\\ast": "*", "\\div": "/"}


def tokens_of(text: str) -> list[tuple[str, str]]:
    """Kind and spelling of each symbol of a normalised text; one spelling for each meaning.

    Raises:
        RefusedError: If something in it is no part of an expression.
    """
    text = _UPRIGHT.sub(r"\1 ", text)
    tokens: list[tuple[str, str]] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise RefusedError(f"{text[position : position + 1]!r} is no part of an expression")
        kind = "number" if match["scale"] else str(match.lastgroup)
        lexeme = match.group().strip()
        tokens.append((kind, "|" if kind == "bar" else _SPELLINGS.get(lexeme, lexeme)))
        position = match.end()
    return tokens


def read_number(text: str) -> Fraction:
    """The value of a token of kind "number".

    Raises:
        RefusedError: If it has too many digits.
    """
    if len(text) > MAX_DIGITS:
        raise RefusedError(f"a number of more than {MAX_DIGITS} digits")
    return Fraction(text.replace("{,}", "").replace(",", ""))


def read_recurring(text: str) -> Fraction:
    """The value of a token of kind "recurring".

    That is `0.1\\overline{6}`, `0.1\\dot{6}` or `0.\\dot{1}4\\dot{2}`.
    """
    before, _, after = re.split(r"(\\[a-z]+)", text, maxsplit=1)
    whole, _, fixed = before.partition(".")
    period = re.sub(r"\\dot|[{}\s]", "", after)
    value = Fraction(int(f"{whole or 0}{fixed}"), 10 ** len(fixed))
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
