"""Where in a completion the answer stands. All functions take any text, in linear time."""

from __future__ import annotations

from enum import StrEnum

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
_ANSWER_OPEN = "<answer>"
_ANSWER_CLOSE = "</answer>"


class Extract(StrEnum):
    """What part of a completion is the answer."""

    WHOLE = "whole"
    LAST_LINE = "last_line"
    ANSWER_TAG = "answer_tag"


def after_thinking(completion: str) -> str | None:
    """What follows the last `</think>`; all of it where nothing was thought.

    A completion whose `<think>` never ends has said nothing yet.

    Returns:
        The text of the answer, or None if the completion ends inside its thinking.
    """
    _, closed, rest = completion.rpartition(THINK_CLOSE)
    if closed:
        return None if THINK_OPEN in rest else rest
    return None if THINK_OPEN in completion else completion


def last_line(text: str) -> str | None:
    """The last line that is not blank, stripped; None if there is none."""
    lines = text.rstrip().splitlines()
    return lines[-1].strip() if lines and lines[-1].strip() else None


def answer_tag(text: str) -> str | None:
    """What the last `<answer>…</answer>` holds, stripped; None if there is none or it is open."""
    before, closed, rest = text.rpartition(_ANSWER_CLOSE)
    if not closed or _ANSWER_OPEN in rest:
        return None
    _, opened, content = before.rpartition(_ANSWER_OPEN)
    return content.strip() if opened else None


def extract_answer(completion: str, how: Extract) -> str | None:
    """The answer that a completion gives outside its thinking; None if it gives none."""
    said = after_thinking(completion)
    if said is None:
        return None
    match how:
        case Extract.WHOLE:
            return said.strip() or None
        case Extract.LAST_LINE:
            return last_line(said)
        case Extract.ANSWER_TAG:
            return answer_tag(said) or None
