"""Which answer a completion gives, and whether it commits to one.

In this order, and never inside `<think>…</think>`:

1. `\\boxed{…}`. Boxes that differ are a hedge, not an answer; a last box that is never closed is no
   answer.
2. What follows the last "answer is", "answer:" or "####", up to the end of its line; of a sentence
   there, the last formula or number.
3. The last formula (`$…$`, `\\(…\\)`, `$$…$$`, `\\[…\\]`), if it ends on the last line.
4. The last number of the last line.

Every step is linear in the completion's length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from rewardsvc.verifiers.math.boxes import find_boxes, without_box_commands
from rewardsvc.verifiers.math.normalise import normalised, split_assignment, text_key
from rewardsvc.verifiers.math.rational import parse_rational
from rewardsvc.verifiers.text import after_thinking, last_line

_PHRASE = re.compile(r"(?:\banswer\s{0,3}(?:is|are|:|=)|####)[ \t]{0,8}:?", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)])-)?(?:\\frac\{-?[0-9]{1,99}\}\{-?[0-9]{1,99}\}"
    # Groups that turn out to be no number must not be tried again from each of their commas.
    r"|(?<![0-9A-Za-z])(?:(?:(?<![0-9],)[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])"
    r"|[0-9]{1,3}(?: [0-9]{3})+(?![0-9])|[0-9]+)"
    r"(?:\.[0-9]+|,[0-9]+(?![0-9,]))?(?:/[0-9]+)?|\.[0-9]+))(?:\\?%)?",
    re.ASCII,
)
_SENTENCE_END = re.compile(r"\.(?=\s|\Z)|\n")
_SENTENCE = re.compile(r"[A-Z]?[a-z']* [A-Za-z$\\]")
_HEDGE = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|not|unless)\b", re.IGNORECASE)
_DELIMITER = re.compile(r"\$\$|\\.|\$", re.DOTALL)
_CLOSING_DELIMITER = {"$$": "$$", "\\[": "\\]", "\\(": "\\)", "$": "$"}
_JOINT = re.compile(r"[^A-Za-z]*(?:[A-Za-z() ]{0,30}\b(?:and|or)\b|,|;)?[^A-Za-z]*")
_TEXT_COMMAND = re.compile(r"\\(?:text|textrm|mathrm|mbox|quad|qquad)(?![A-Za-z])")
_MAX_GAP_CHARS = 60
_MAX_BOX_CHARS = 50_000
_INLINE_MATH = re.compile(r"\\\((?P<paren>[^\n]*?)\\\)|(?<!\\)\$(?P<dollar>[^$\n]+)\$")
_EMPHASIS = "*_ \t"


class Missing(StrEnum):
    """Why a completion gives no answer."""

    THINKING = "the completion ends inside its thinking"
    UNTERMINATED = "the last box is not closed"
    EMPTY_BOX = "the box is empty"
    NONE = "no box, no 'answer is', and no formula or number on the last line"
    NO_BOX = "no box"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """An answer, normalised.

    Attributes:
        answers: The different answers given, in the order of their last mention; one unless the
            completion hedges. Different are numbers of different value, or else different texts.
        where: "box", "phrase", "formula" or "last line".
    """

    answers: tuple[str, ...]
    where: str


def extract_math_answer(completion: str, *, require_box: bool = False) -> Extracted | Missing:
    """The answer that `completion` gives, or why it gives none."""
    said = after_thinking(completion)
    if said is None:
        return Missing.THINKING
    boxes = find_boxes(said)
    if boxes.unterminated:
        return Missing.UNTERMINATED
    if boxes.contents:
        different: dict[str, str] = {}
        for text in map(_plain, boxes.contents):
            key = _key(text)
            different.pop(key, None)  # in the order of their last mention
            different[key] = text
        if "" in different:
            return Missing.EMPTY_BOX
        return Extracted(answers=tuple(different.values()), where="box")
    if require_box:
        return Missing.NO_BOX
    phrase = _after_phrase(said)
    if phrase:
        return Extracted(answers=(phrase,), where="phrase")
    formula = _last_formula(said)
    if formula:
        return Extracted(answers=(formula,), where="formula")
    numbers = _NUMBER.findall(last_line(said) or "")
    if numbers:
        return Extracted(answers=(normalised(numbers[-1]),), where="last line")
    return Missing.NONE


def extract_reference(answer: str) -> str:
    """The reference itself, normalised, where a data set stores more than that.

    A worked solution ends in a box, in several boxes side by side, in "answer is …" or, as in
    GSM8K, in `#### 42`.
    """
    boxes = find_boxes(answer)
    if boxes.contents:
        num_joined = 1
        for gap in reversed(boxes.gaps):
            bare = _TEXT_COMMAND.sub("", gap)
            if len(gap) > _MAX_GAP_CHARS or not _JOINT.fullmatch(bare):
                break
            num_joined += 1
        different = dict.fromkeys(map(_plain, boxes.contents[-num_joined:]))
        return ", ".join(different)
    _, marked, rest = answer.rpartition("####")
    if marked:
        return normalised(rest)
    return _after_phrase(answer) or normalised(answer)


def _plain(box_content: str) -> str:
    if len(box_content) > _MAX_BOX_CHARS:
        return box_content[:_MAX_BOX_CHARS]  # as it is: no reference is nearly as long
    return normalised(without_box_commands(box_content))


def _key(text: str) -> str:
    rational = parse_rational(split_assignment(text)[1])
    if rational is None:
        return text_key(text)
    return f"{rational.value}%" if rational.percent else str(rational.value)


def _after_phrase(said: str) -> str:
    end = -1
    for match in _PHRASE.finditer(said):
        end = match.end()
    if end < 0:
        return ""
    rest = said[end:].lstrip().partition("\n")[0].strip(_EMPHASIS)
    math = _INLINE_MATH.match(rest)
    if math and not re.match(r"\s*(?:or|and|,)\b", rest[math.end() :]):
        return normalised(math["paren"] or math["dollar"] or "")
    sentence = _SENTENCE_END.search(rest)
    if sentence:
        rest = rest[: sentence.start()]
    if _SENTENCE.match(rest) and not _HEDGE.search(rest):
        # "Final answer: The largest n is 34"
        found = _last_formula(rest) or normalised((_NUMBER.findall(rest) or [""])[-1])
        if found:
            return found
    return normalised(rest.strip(_EMPHASIS))


def _last_formula(said: str) -> str:
    """The last formula of a text, normalised, if neither a number nor a line follows it."""
    start, end = -1, -1
    opened, opened_at = "", -1
    for mark in _DELIMITER.finditer(said):
        symbol = mark.group()
        if opened and symbol == _CLOSING_DELIMITER[opened]:
            if opened == "$$" or opened == "\\[" or "\n" not in said[opened_at : mark.start()]:
                start, end = opened_at, mark.start()
                opened = ""
            else:
                opened, opened_at = ("$", mark.end()) if symbol == "$" else ("", -1)
        elif not opened and symbol in _CLOSING_DELIMITER:
            opened, opened_at = symbol, mark.end()
    if start < 0:
        return ""
    after = _DELIMITER.sub("", said[end:]).strip()
    return "" if "\n" in after or _NUMBER.search(after) else normalised(said[start:end])
