"""What can be decided exactly, before anything is asked of a computer algebra system.

A stage looks at one question and either decides it or passes it on. `EXACT_STAGES` is the order in
which they are asked; a new kind of answer is one more function in that list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from rewardsvc.verifiers.math.normalise import (
    brackets_balance,
    is_prose,
    nesting_depth,
    split_assignment,
    text_key,
)
from rewardsvc.verifiers.math.rational import parse_rational
from rewardsvc.verifiers.math.units import parse_quantity, without_noun
from rewardsvc.verifiers.types import Verdict

MAX_REFERENCE_CHARS = 10_000
MAX_ANSWER_CHARS = 1_000
"""Or `_MAX_LENGTH_RATIO` times the reference's, if that is more."""
_MAX_LENGTH_RATIO = 4
MAX_NESTING = 50
_MAX_SHOWN_CHARS = 80
_HEDGE = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|unless)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Is `answer` the same as `reference`? Both are normalised and not blank."""

    reference: str
    answer: str


Stage: TypeAlias = Callable[[Question], Verdict | None]
"""Decides a question, or returns None."""


def reference_problem(reference: str) -> str:
    """Why a normalised reference cannot be compared with, in words; empty if it seems fine."""
    if not reference:
        return "answer is blank; give the reference"
    if len(reference) > MAX_REFERENCE_CHARS:
        return f"answer has {len(reference)} characters, at most {MAX_REFERENCE_CHARS}"
    if not brackets_balance(reference):
        return f"answer is {shown(reference)}, whose brackets do not match"
    return ""


def within_limits(question: Question) -> Verdict | None:
    """Refuses answers that no reference looks like, before anything reads them."""
    length = len(question.answer)
    if length > max(MAX_ANSWER_CHARS, _MAX_LENGTH_RATIO * len(question.reference)):
        return Verdict.rejected(f"an answer of {length} characters")
    if nesting_depth(question.answer) > MAX_NESTING:
        return Verdict.rejected(f"brackets nested more than {MAX_NESTING} deep")
    return None


def same_text(question: Question) -> Verdict | None:
    """Accepts what differs from the reference in spacing and text commands only."""
    if text_key(question.answer) == text_key(question.reference):
        return Verdict.accepted("the same text as the reference")
    return None


def hedged(question: Question) -> Verdict | None:
    """Rejects "2 or 3", unless the reference speaks that way itself."""
    hedge = _HEDGE.search(question.answer)
    if hedge and not _HEDGE.search(question.reference):
        return Verdict.rejected(f"{shown(question.answer)} hedges: {hedge.group()!r}")
    return None


def words(question: Question) -> Verdict | None:
    """Rejects any other text where the reference is words."""
    if is_prose(question.reference):
        return _differs(question)
    return None


def quantities(question: Question) -> Verdict | None:
    """Decides quantities with known units; a side without a unit is taken to mean the other's."""
    reference, answer = parse_quantity(question.reference), parse_quantity(question.answer)
    if reference and answer:
        if reference.dimension != answer.dimension:
            return Verdict.rejected(f"{answer.dimension} where {reference.dimension} is asked for")
        if reference.factor == answer.factor:
            return numbers(Question(reference=reference.number, answer=answer.number))
        left, right = parse_rational(reference.number), parse_rational(answer.number)
        if left and right and left.value * reference.factor == right.value * answer.factor:
            return Verdict.accepted(f"{shown(question.answer)} is {shown(question.reference)}")
        return _differs(question)
    if reference and reference.surely:
        return numbers(Question(reference=reference.number, answer=question.answer))
    if answer and answer.surely:
        return numbers(Question(reference=question.reference, answer=answer.number))
    return None


def counted_things(question: Question) -> Verdict | None:
    """Decides "5 apples" where the reference is a number."""
    if parse_rational(question.reference) is None:
        return None
    return numbers(Question(reference=question.reference, answer=without_noun(question.answer)))


def numbers(question: Question) -> Verdict | None:
    """Decides rational numbers, exactly; "x = 5" is one, unless the reference names another."""
    reference_name, reference_text = split_assignment(question.reference)
    answer_name, answer_text = split_assignment(question.answer)
    reference, answer = parse_rational(reference_text), parse_rational(answer_text)
    if reference is None or answer is None:
        return None
    same_variable = not reference_name or not answer_name or reference_name == answer_name
    if same_variable and answer.equals(reference):
        return Verdict.accepted(f"{shown(question.answer)} is {shown(question.reference)}")
    return _differs(question)


EXACT_STAGES: tuple[Stage, ...] = (
    within_limits,
    same_text,
    hedged,
    words,
    quantities,
    counted_things,
    numbers,
)


def shown(text: str) -> str:
    """`text` as an explanation quotes it: at most 80 characters."""
    return repr(text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…")


def _differs(question: Question) -> Verdict:
    return Verdict.rejected(f"{shown(question.answer)} is not {shown(question.reference)}")
