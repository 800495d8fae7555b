"""Countdown: reach a target with the given numbers, + - * / and parentheses.

The expression is tokenized and evaluated here, exactly, over fractions; nothing of it reaches
Python's parser. Only ASCII digits and operators count: full-width digits, `×`, `÷`, a Unicode minus
and letters make the answer wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from rewardsvc.verifiers.arithmetic import MAX_BITS, RefusedError, Symbol, evaluate
from rewardsvc.verifiers.text import Extract, extract_answer
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict

MAX_EXPRESSION_CHARS = 1000
MAX_NUMBERS = 100
MAX_NUMBER_DIGITS = 30
_TOKEN = re.compile(r"[ \t]*(?:([0-9]+)|([-+*/()]))", re.ASCII)
_MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Countdown:
    """Checks expressions of the Countdown game.

    Attributes:
        extract: Where the expression stands, outside of `<think>…</think>`. It may be followed by
            `= target`.
        use_all: Whether each number must be used exactly once; else at most once.
        allow_sign: Whether `-3` and `-(1 + 2)` are allowed, not only `5 - 3`.
    """

    extract: Extract = Extract.LAST_LINE
    use_all: bool = True
    allow_sign: bool = False

    def verify(self, completion: str, numbers: Sequence[int], target: int | Fraction) -> Verdict:
        """Whether the completion's expression uses `numbers` as it must and equals `target`.

        Args:
            completion: Any text.
            numbers: What may be used, non-negative; a number that stands twice may be used twice.
            target: What to reach.

        Returns:
            ACCEPTED, NO_ANSWER, WRONG_ANSWER, or BAD_REFERENCE without a reward if `numbers` cannot
            be played, or `target` is no number that may be reached.
        """
        problem = _unplayable(numbers) or _unreachable(target)
        if problem:
            return Verdict.failed(ErrorKind.BAD_REFERENCE, problem)
        answer = extract_answer(completion, self.extract)
        if answer is None:
            return Verdict.rejected(f"no answer ({self.extract})", status=Status.NO_ANSWER)
        if len(answer) > MAX_EXPRESSION_CHARS:
            return Verdict.rejected(
                f"an expression of {len(answer)} characters, at most {MAX_EXPRESSION_CHARS}"
            )
        expression, equals, claimed = answer.partition("=")
        try:
            tokens = _tokenize(expression)
            self._check_signs(tokens)
            self._check_numbers(tokens, numbers)
            value = evaluate(tokens)
            if equals and evaluate(_tokenize(claimed)) != value:
                raise RefusedError("it claims to equal something else")
        except RefusedError as refused:
            return Verdict.rejected(f"{_shown(answer)}: {refused}")
        if value != target:
            return Verdict.rejected(f"{_shown(answer)} is {_value(value)}, not {target}")
        return Verdict.accepted(f"{_shown(answer)} is {target}")

    def _check_signs(self, tokens: Sequence[Symbol]) -> None:
        if self.allow_sign:
            return
        for before, token in zip([None, *tokens], tokens, strict=False):
            follows_operand = before == ")" or isinstance(before, Fraction)
            if token in ("+", "-") and not follows_operand:
                raise RefusedError(f"{token!r} used as a sign")

    def _check_numbers(self, tokens: Sequence[Symbol], numbers: Sequence[int]) -> None:
        used = Counter(int(token) for token in tokens if isinstance(token, Fraction))
        given = Counter(numbers)
        extra = used - given
        if extra:
            raise RefusedError(f"{min(extra)} is used more often than it is given")
        unused = given - used
        if self.use_all and unused:
            raise RefusedError(f"{min(unused)} is not used")


def _unplayable(numbers: Sequence[int]) -> str:
    if not 1 <= len(numbers) <= MAX_NUMBERS:
        return f"numbers has {len(numbers)} entries; give 1 to {MAX_NUMBERS}"
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            return f"numbers contains {number!r:.80}; give non-negative integers"
        if number < 0:
            return "numbers contains one below 0; give non-negative integers"
        if number >= 10**MAX_NUMBER_DIGITS:
            return f"numbers contains one of more than {MAX_NUMBER_DIGITS} digits"
    return ""


def _unreachable(target: object) -> str:
    """What keeps `target` from being one; "24" equals nothing, and nobody would be to blame."""
    if isinstance(target, float) and target.is_integer():
        return ""  # as a data frame has it that had a gap
    if isinstance(target, bool) or not isinstance(target, int | Fraction):
        return f"target is {target!r:.80}; give an integer or a fraction"
    if max(target.numerator.bit_length(), target.denominator.bit_length()) > MAX_BITS:
        return f"target has more than {MAX_BITS} bits"
    return ""


def _tokenize(expression: str) -> list[Symbol]:
    expression = expression.strip(" \t")
    tokens: list[Symbol] = []
    position = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise RefusedError(f"{expression[position:].lstrip()[:1]!r} is not allowed")
        digits, symbol = match.groups()
        if symbol:
            tokens.append(cast("Symbol", symbol))
        elif len(digits) > MAX_NUMBER_DIGITS:
            raise RefusedError(f"a number of {len(digits)} digits, at most {MAX_NUMBER_DIGITS}")
        else:
            tokens.append(Fraction(int(digits)))
        position = match.end()
    return tokens


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…")


def _value(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
