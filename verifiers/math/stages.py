"""What can be decided exactly, before anything is asked of a computer algebra system.

A stage looks at one question. It decides it, or passes it on as it is, or passes on a simpler one:
without units, without the words around a number. `EXACT_STAGES` is the order in which they are
asked; a new kind of answer is one more function in that list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from rewardsvc.verifiers.arithmetic import RefusedError
from rewardsvc.verifiers.math.algebra import one_budget
from rewardsvc.verifiers.math.form_reader import read_forms
from rewardsvc.verifiers.math.forms import (
    Equation,
    Group,
    Matrix,
    Named,
    Ratio,
    RealSet,
    Scalar,
    Unreadable,
)
from rewardsvc.verifiers.math.normalise import (
    brackets_balance,
    is_prose,
    nesting_depth,
    prose_key,
    split_assignment,
    text_key,
)
from rewardsvc.verifiers.math.rational import parse_rational
from rewardsvc.verifiers.math.reader import read_expression
from rewardsvc.verifiers.math.same import same
from rewardsvc.verifiers.math.units import (
    Quantity,
    parse_quantity,
    scaled,
    without_modulus,
    without_noun,
)
from rewardsvc.verifiers.types import Verdict

MAX_REFERENCE_CHARS = 10_000
MAX_ANSWER_CHARS = 1_000
"""Or `_MAX_LENGTH_RATIO` times the reference's, if that is more."""
_MAX_LENGTH_RATIO = 4
MAX_NESTING = 50
_MAX_SHOWN_CHARS = 80
_HEDGE = re.compile(r"\b(?:either|maybe|perhaps|possibly|unless)\b", re.IGNORECASE)
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_PLURAL = re.compile(r"[,;<>]|\\(?:pm|mp|cup|leq?|geq?|neq?|lt|gt|\{)(?![A-Za-z])|\b(?:and|or)\b")
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathbf|mathrm|textrm|mbox)\s?\{\s?)?\(?\s?(?P<letter>[A-J])\s?"
    r"(?P<after>[).:]?)\s?\}?(?P<closed>\)?)(?P<rest>.*)",
    re.ASCII | re.DOTALL,
)
_BASED = re.compile(r"(?P<digits>[0-9A-F]{1,200})\s?_\s?\{?\s?(?P<base>[0-9]{1,2})\s?\}?", re.ASCII)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox|textnormal)\s?\{([^{}]*)\}")
_WORD = re.compile(r"[A-Za-z]{2,}", re.ASCII)
_NOTHING = frozenset(
    {"no solution", "no solutions", "no real solution", "no real solutions", "none", "empty set"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Is `answer` the same as `reference`? Both are normalised and not blank."""

    reference: str
    answer: str


_KINDS: dict[type, str] = {
    Scalar: "expression",
    Group: "set, list or point",
    RealSet: "set of real numbers",
    Matrix: "matrix",
    Ratio: "ratio",
    Named: "value",
    Equation: "equation",
    Unreadable: "text",
}

Stage: TypeAlias = Callable[[Question], Verdict | Question | None]
"""Decides a question, simplifies it, or returns None."""


def decide(question: Question) -> Verdict | Question:
    """The verdict, or what is left to ask a computer algebra system."""
    with one_budget():
        return _decide(question)


def _decide(question: Question) -> Verdict | Question:
    for stage in EXACT_STAGES:
        result = stage(question)
        if isinstance(result, Verdict):
            return result
        question = result or question
    return question


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
    if nesting_depth(question.answer) > max(MAX_NESTING, nesting_depth(question.reference)):
        return Verdict.rejected(f"brackets nested more than {MAX_NESTING} deep")
    return None


def same_text(question: Question) -> Verdict | None:
    """Accepts what differs from the reference in spacing and text commands only."""
    if text_key(question.answer) == text_key(question.reference):
        return Verdict.accepted("the same text as the reference")
    return None


def hedged(question: Question) -> Verdict | None:
    """Rejects "2 or 3", unless the reference is several things, or speaks that way itself."""
    hedge = _HEDGE.search(question.answer)
    if hedge is None and not _PLURAL.search(question.reference):
        hedge = _OR.search(question.answer)
    if hedge and not (_HEDGE.search(question.reference) or _OR.search(question.reference)):
        return Verdict.rejected(f"{shown(question.answer)} hedges: {hedge.group()!r}")
    return None


def choices(question: Question) -> Verdict | Question | None:
    """Decides the letter of a multiple choice; `(B) 12` is both B and 12."""
    reference, answer = _CHOICE.fullmatch(question.reference), _CHOICE.fullmatch(question.answer)
    if reference is None or not (_is_bare(reference) or _is_labelled(reference)):
        if answer is not None and _is_labelled(answer):
            return Question(reference=question.reference, answer=_rest(answer))
        return None
    if answer is None or not (_is_bare(answer) or _is_labelled(answer)):
        if _is_labelled(reference):
            return Question(reference=_rest(reference), answer=question.answer)
        return None
    if _is_labelled(answer) and re.search(r"\([A-J]\)", answer["rest"]):
        return Verdict.rejected(f"{shown(question.answer)} names several choices")
    if answer["letter"] == reference["letter"]:
        return Verdict.accepted(f"it chooses {answer['letter']}")
    return _differs(question)


def _is_bare(match: re.Match[str]) -> bool:
    return not match["rest"].strip()


def _is_labelled(match: re.Match[str]) -> bool:
    """Whether something follows the letter, which is closed off by a bracket, stop or colon."""
    return bool(_rest(match)) and bool(match["after"] or match["closed"])


def _rest(match: re.Match[str]) -> str:
    return match["rest"].lstrip("\\ ").strip()


def based(question: Question) -> Verdict | None:
    """Decides numerals with a base, `204_5`; the reference's base is the one that is asked for."""
    reference, answer = _BASED.fullmatch(question.reference), _BASED.fullmatch(question.answer)
    if reference is None and answer is None:
        return None
    if reference is not None:
        digits, base = (answer["digits"], answer["base"]) if answer else (question.answer, None)
        if digits == reference["digits"] and base in (None, reference["base"]):
            return Verdict.accepted(f"the same digits in base {reference['base']}")
    elif answer is not None and answer["base"] == "10":
        return numbers(Question(reference=question.reference, answer=answer["digits"]))
    return _differs(question)


def words(question: Question) -> Verdict | None:
    """Decides references in words, which only text can be compared with."""
    reference, answer = prose_key(question.reference), prose_key(question.answer)
    if reference in _NOTHING or answer in _NOTHING:
        if {reference, answer} <= _NOTHING or _is_nothing(question.reference, question.answer):
            return Verdict.accepted("both say that there is nothing")
        return _differs(question)
    if is_prose(question.reference):
        if reference == answer:
            return Verdict.accepted("the same words as the reference")
        return _differs(question)
    if is_prose(question.answer) and not re.search("[A-Za-z]", question.reference):
        return _differs(question)
    return None


def _is_nothing(*texts: str) -> bool:
    """Whether one of the texts is an empty set."""
    sets = [form for text in texts for form in read_forms(text)]
    return any(isinstance(form, RealSet) and not form.pieces for form in sets)


def quantities(question: Question) -> Verdict | Question | None:
    """Converts units; a side without a unit is taken to mean the other's."""
    reference, answer = parse_quantity(question.reference), parse_quantity(question.answer)
    if reference and answer:
        if {reference.dimension, answer.dimension} == {"angle", "radians"}:
            return Question(reference=_in_radians(reference), answer=_in_radians(answer))
        if reference.dimension != answer.dimension:
            return Verdict.rejected(f"{answer.dimension} where {reference.dimension} is asked for")
        ratio = reference.factor / answer.factor
        if ratio == 1:
            return Question(reference=reference.number, answer=answer.number)
        return Question(
            reference=rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}}*({reference.number})",
            answer=answer.number,
        )
    if reference and reference.surely:
        if reference.dimension == "angle" and "\\pi" in question.answer:
            return Question(reference=_in_radians(reference), answer=question.answer)
        return Question(reference=reference.number, answer=question.answer)
    if answer and answer.surely:
        if answer.dimension == "angle" and "\\pi" in question.reference:
            return Question(reference=question.reference, answer=_in_radians(answer))
        return Question(reference=question.reference, answer=answer.number)
    return None


def _in_radians(quantity: Quantity) -> str:
    if quantity.dimension == "radians":
        return quantity.number
    return rf"\frac{{\pi}}{{180}}*({quantity.number})"


def counted_things(question: Question) -> Question | None:
    """Takes the words off "5 apples", reads "5 million" and "7th" as numbers."""
    reference, answer = _counted(question.reference), _counted(question.answer)
    if (reference, answer) == (question.reference, question.answer):
        return None
    return Question(reference=reference, answer=answer)


def _counted(text: str) -> str:
    number = scaled(without_modulus(text))
    bare = without_noun(number)
    if bare == number:
        return number
    try:
        read_expression(bare)
    except RefusedError:
        return number
    return bare


def numbers(question: Question) -> Verdict | None:
    """Decides rational numbers, exactly; "x = 5" is one, unless the reference names another."""
    reference_name, reference_text = split_assignment(question.reference)
    answer_name, answer_text = split_assignment(question.answer)
    reference = parse_rational(reference_text)
    if reference is None:
        return None
    answer = parse_rational(answer_text)
    if answer is None:
        return None
    same_variable = not reference_name or not answer_name or reference_name == answer_name
    if same_variable and answer.equals(reference):
        return Verdict.accepted(
            f"{shown(question.answer)} is {shown(question.reference)}, exactly"
            if answer.value == reference.value
            else f"{shown(question.answer)} is {shown(question.reference)}, rounded or in percent"
        )
    return _differs(question)


def structured(question: Question) -> Verdict | None:
    """Decides expressions in normal form, and what is made of them: sets, points, intervals."""
    unknown = False
    answers = read_forms(question.answer)
    for reference in read_forms(question.reference):
        for answer in answers:
            verdict = same(reference, answer)
            if verdict:
                return Verdict.accepted(
                    f"{shown(question.answer)} is {shown(question.reference)}: "
                    f"the same {_KINDS[type(reference)]}"
                )
            unknown |= verdict is None
    if unknown:
        return None
    why = next((form.why for form in answers if isinstance(form, Unreadable) and form.why), "")
    return _differs(question, why)


def unknown_words(question: Question) -> Verdict | None:
    """Rejects words that nobody here can judge: Math-Verify would not read the "not" of "not 5"."""
    said, expected = _words_in(question.answer), _words_in(question.reference)
    if said <= expected:
        return None
    return Verdict.rejected(f"{shown(question.answer)} says more than mathematics")


def _words_in(text: str) -> set[str]:
    return {word.lower() for part in _TEXT.findall(text) for word in _WORD.findall(part)}


EXACT_STAGES: tuple[Stage, ...] = (
    within_limits,
    same_text,
    numbers,
    hedged,
    based,
    choices,
    words,
    quantities,
    counted_things,
    numbers,
    structured,
    unknown_words,
)


def shown(text: str) -> str:
    """`text` as an explanation quotes it: at most 80 characters."""
    return repr(text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…")


def _differs(question: Question, why: str = "") -> Verdict:
    reason = f": {why}" if why else ""
    return Verdict.rejected(f"{shown(question.answer)} is not {shown(question.reference)}{reason}")
