"""Which letter a completion chooses.

Where the letter is looked for, outside of `<think>…</think>`; the first of these that is there
decides, and what it says is final:

1. `\\boxed{…}`. Several boxes with different letters are a hedge.
2. The last `<answer>…</answer>`.
3. What follows the last "answer is", "answer:" or "####" on its line.
4. The last line that is not blank.

There the choice must come first: "B", "(b)", "**B.**", "B) Paris", "option B", "\\text{B}". A bare
letter may be of either case; one with words after it counts as a capital only, and on a last line
(4) not at all if the sentence simply goes on, so that "A cat sat down." chooses nothing. Naming
another choice after it ("B or C", "A, B", "B, not A") is a hedge, and wrong.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from rewardsvc.verifiers.base import Verifier
from rewardsvc.verifiers.math.boxes import find_boxes
from rewardsvc.verifiers.text import after_thinking, answer_tag, last_line
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict

MAX_CHOICES = 26
_ANNOUNCED = re.compile(r"(?:\banswer\s{0,4}(?:is\b|:)|####)", re.IGNORECASE)
_DECORATION = " \t*_`$\"'‘’“”:()[]{}."
_PREFIXES = ("\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{", "option ", "choice ", "answer ")
_WORD = re.compile(r"[^\W_]+")
_SENTENCE_GOES_ON = re.compile(r" [a-z]")
_PRONOUN = re.compile(r"(?<!\bor )(?<!\band )(?<!\bnor )\bI(?=[ '’][a-z])")
_MAX_SHOWN_CHARS = 80
_MAX_ANSWER_CHARS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice(Verifier):
    """Compares the letter that a completion chooses with the right one.

    Attributes:
        num_choices: How many there are, named A, B, C and so on; 2 to 26.

    Raises:
        ValueError: If `num_choices` is out of range.
    """

    num_choices: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.num_choices <= MAX_CHOICES:
            raise ValueError(f"num_choices is {self.num_choices}; give 2 to {MAX_CHOICES}")

    def verify(self, completion: str, answer: str) -> Verdict:
        """Whether the completion chooses `answer`.

        Args:
            completion: Any text.
            answer: The right letter, of either case, bare or in parentheses.

        Returns:
            ACCEPTED, NO_ANSWER or WRONG_ANSWER; BAD_REFERENCE without a reward if `answer` is none
            of the letters.
        """
        letters = string.ascii_uppercase[: self.num_choices]
        expected = answer.strip(_DECORATION).upper()
        if len(expected) != 1 or expected not in letters:
            return Verdict.failed(
                ErrorKind.BAD_REFERENCE,
                f"answer is {answer[:_MAX_SHOWN_CHARS]!r}; give one of {letters[0]} to "
                f"{letters[-1]}, or raise num_choices",
            )
        said = after_thinking(completion)
        chosen = [] if said is None else _choices(said, letters)
        if any(len(choice) > 1 for choice in chosen) or len(set(chosen)) > 1:
            return Verdict.rejected("several choices")
        if not chosen or not chosen[0]:
            return Verdict.rejected("no choice", status=Status.NO_ANSWER)
        if chosen[0] == expected:
            return Verdict.accepted(f"it chooses {expected}")
        return Verdict.rejected(f"it chooses {chosen[0]}, not {expected}")


def _choices(said: str, letters: str) -> list[str]:
    """What is chosen where the choice stands, see `_choice`; several only where boxes are."""
    boxes = find_boxes(said)
    if boxes.unterminated:
        return []
    if boxes.contents:
        return [_choice(content, letters) for content in boxes.contents]
    tagged = answer_tag(said)
    if tagged is not None:
        return [_choice(tagged, letters)]
    announced = None
    for announced in _ANNOUNCED.finditer(said):  # noqa: B007 - the last one is wanted
        pass
    if announced is not None:
        rest = said[announced.end() :].lstrip()
        return [_choice(rest.partition("\n")[0], letters)]
    line = last_line(said)
    return [_choice(line, letters, announced=False)] if line else []


def _choice(spot: str, letters: str, *, announced: bool = True) -> str:
    """The letter that `spot` begins with, and after it all others that it names; "" for none."""
    text = _undecorated(spot[:_MAX_ANSWER_CHARS])
    first = _WORD.match(text)
    if first is None or len(first.group()) != 1:
        return ""
    rest = text[first.end() :]
    letter = first.group().upper()
    if letter not in letters or (first.group().islower() and _WORD.search(rest)):
        return ""
    if not announced and _SENTENCE_GOES_ON.match(rest):
        return ""
    named = {word for word in _WORD.findall(_PRONOUN.sub("", rest)) if word in set(letters)}
    return letter + "".join(sorted(named - {letter}))


def _undecorated(text: str) -> str:
    """`text` without what may stand around a letter: emphasis, brackets, "option"."""
    while True:
        stripped = text.lstrip(_DECORATION)
        for prefix in _PREFIXES:
            if stripped[: len(prefix)].lower() == prefix:
                stripped = stripped[len(prefix) :]
        if stripped == text:
            return text
        text = stripped
