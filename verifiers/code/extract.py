"""Finds the program in a completion.

The policy, in this order:

1. What stands before the last `</think>` is thinking and is not looked at. If the text opens a
   `<think>` and never closes it, there is no answer.
2. Of the closed fences that name the language (or an alias of it), the last one counts.
3. If there is none, the last closed fence without a language counts.
4. A fence that is never closed is a completion that was cut off; it does not count.
5. Without any fence there is no program, unless the caller says that bare text is code.

Fences are those of CommonMark: at least three backticks or tildes at the start of a line (after at
most three blanks), closed by at least as many of the same. One pass over the lines, no regular
expression.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

_MAX_INDENT = 3
_MIN_FENCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A closed code fence.

    Attributes:
        language: First word behind the opening, in lower case; may be empty.
        code: The lines between, each with its newline.
    """

    language: str
    code: str


def answer_part(completion: str) -> str | None:
    """What stands behind the thinking; None if the thinking never ends."""
    _, closed, answer = completion.rpartition("</think>")
    if closed:
        return answer
    return None if "<think>" in completion else completion


def fences(text: str) -> list[Fence]:
    """All closed fences, in order."""
    found = []
    opening, language, lines = "", "", list[str]()
    for line in text.split("\n"):
        marker, rest = _split_marker(line.rstrip("\r"))
        if not opening:
            # A backtick in the info string means inline code, not a fence.
            if marker and not (marker[0] == "`" and "`" in rest):
                opening, lines = marker, []
                language = (rest.split() or [""])[0].lower().strip("{}.")
        elif marker.startswith(opening) and not rest.strip():
            found.append(Fence(language=language, code="".join(f"{one}\n" for one in lines)))
            opening = ""
        else:
            lines.append(line)
    return found


def _split_marker(line: str) -> tuple[str, str]:
    """The fence marker that a line starts with, or "", and the rest of the line."""
    body = line.lstrip(" ")
    if len(line) - len(body) > _MAX_INDENT or not body or body[0] not in "`~":
        return "", line
    rest = body.lstrip(body[0])
    marker = body[: len(body) - len(rest)]
    return (marker, rest) if len(marker) >= _MIN_FENCE else ("", line)


def extract_program(
    completion: str, names: Collection[str], *, bare_code: bool = False
) -> str | None:
    """The program in a completion, by the policy above.

    Args:
        completion: Any text.
        names: The language's name and aliases, in lower case.
        bare_code: Whether text without any fence is itself the program.

    Returns:
        The program, or None if there is none; never an empty one.
    """
    answer = answer_part(completion)
    if answer is None:
        return None
    closed = fences(answer)
    for matching in (
        [f for f in closed if f.language in names],
        [f for f in closed if not f.language],
    ):
        if matching:
            return matching[-1].code if matching[-1].code.strip() else None
    if bare_code and not closed and answer.strip() and "```" not in answer:
        return answer
    return None
