"""`\\boxed{…}` in text, in one pass: twenty thousand unclosed boxes cost twenty thousand steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARK = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_COMMAND = re.compile(r"\\(?:boxed|fbox)\s{0,8}(?=\{)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """What is boxed in a text.

    Attributes:
        contents: Of each closed box in order of opening, without boxes inside other closed boxes.
        unterminated: Whether the last box that was opened is never closed.
    """

    contents: tuple[str, ...]
    unterminated: bool


def find_boxes(text: str) -> Boxes:
    """Finds the boxes with balanced braces. `\\{` and `\\}` are symbols, not braces."""
    open_braces: list[int | None] = []  # where a box's content starts; None for a plain brace
    closed: list[tuple[int, int]] = []
    last_start = -1
    last_closed_start = -1
    for mark in _MARK.finditer(text):
        symbol = mark.group()
        if symbol == "{":
            open_braces.append(None)
        elif symbol == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None:
                # Boxes inside this one were closed before it and stand at the end of the list.
                while closed and closed[-1][0] > start:
                    closed.pop()
                closed.append((start, mark.start()))
                last_closed_start = max(last_closed_start, start)
        elif symbol.endswith("{") and len(symbol) > len(r"\{"):
            last_start = mark.end()
            open_braces.append(last_start)
    return Boxes(
        contents=tuple(text[start:end] for start, end in closed),
        unterminated=last_start > last_closed_start,
    )


def without_box_commands(text: str) -> str:
    """`text` with the braces of its boxes and without their names: `\\boxed{3}` → `{3}`."""
    return _COMMAND.sub("", text)
