"""`\\boxed{…}` in text, in one pass: twenty thousand unclosed boxes cost twenty thousand steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

# A doubled backslash before `boxed` is JSON that was escaped once too often.
_MARK = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_COMMAND = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,8}(?=\{)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """What is boxed in a text.

    Attributes:
        contents: Of each closed box in order of opening, without boxes inside other closed boxes.
        gaps: What stands between each box and the one before it; one fewer.
        unterminated: Whether the last box that was opened is never closed.
    """

    contents: tuple[str, ...]
    gaps: tuple[str, ...] = ()
    unterminated: bool


def find_boxes(text: str) -> Boxes:
    """Finds the boxes with balanced braces. `\\{` and `\\}` are symbols, not braces."""
    open_braces: list[tuple[int, int] | None] = []  # of a box; None for a plain brace
    closed: list[tuple[int, int, int]] = []  # start of the command, start and end of the content
    last_start = -1
    last_closed_start = -1
    for mark in _MARK.finditer(text):
        symbol = mark.group()
        if symbol == "{":
            open_braces.append(None)
        elif symbol == "}":
            opened = open_braces.pop() if open_braces else None
            if opened is not None:
                # Boxes inside this one were closed before it and stand at the end of the list.
                while closed and closed[-1][0] > opened[0]:
                    closed.pop()
                closed.append((*opened, mark.start()))
                last_closed_start = max(last_closed_start, opened[1])
        elif symbol.endswith("{") and len(symbol) > len(r"\{"):
            last_start = mark.end()
            open_braces.append((mark.start(), last_start))
    return Boxes(
        contents=tuple(text[start:end] for _, start, end in closed),
        gaps=tuple(text[end + 1 : command] for (_, _, end), (command, _, _) in pairwise(closed)),
        unterminated=last_start > last_closed_start,
    )


def without_box_commands(text: str) -> str:
    """`text` with the braces of its boxes and without their names: `\\boxed{3}` → `{3}`."""
    return _COMMAND.sub("", text)
