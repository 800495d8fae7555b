"""The completion's answer equals the reference, text for text."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from rewardsvc.verifiers.text import Extract, extract_answer
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict

_MAX_SHOWN_CHARS = 80
_MAX_MARKS = 30
"""Combining marks on one character, as in Unicode's stream-safe text (UAX #15, section 13)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    """Compares text after Unicode NFC normalisation and with runs of white space as one space.

    Attributes:
        extract: Where the answer stands, outside of `<think>…</think>`.
        ignore_case: Whether "Paris" equals "paris".
    """

    extract: Extract = Extract.WHOLE
    ignore_case: bool = False

    def verify(self, completion: str, answer: str) -> Verdict:
        """Whether the completion's answer is `answer`.

        Returns:
            ACCEPTED, NO_ANSWER or WRONG_ANSWER; BAD_REFERENCE without a reward if `answer` is
            blank.
        """
        expected = self._normalised(answer)
        if not expected:
            return Verdict.failed(ErrorKind.BAD_REFERENCE, "answer is blank; give the reference")
        given = extract_answer(completion, self.extract)
        if given is None:
            return Verdict.rejected(f"no answer ({self.extract})", status=Status.NO_ANSWER)
        if self._normalised(given) == expected:
            return Verdict.accepted("equal to the reference")
        return Verdict.rejected(f"{given[:_MAX_SHOWN_CHARS]!r} is not the reference")

    def _normalised(self, text: str) -> str:
        if not _has_piled_marks(text):
            text = unicodedata.normalize("NFC", text)
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text


def _has_piled_marks(text: str) -> bool:
    """Whether more marks follow one another than anybody writes: sorting them takes the square."""
    if text.isascii():
        return False
    num_marks = 0
    for character in text:
        num_marks = num_marks + 1 if unicodedata.combining(character) else 0
        if num_marks > _MAX_MARKS:
            return True
    return False
