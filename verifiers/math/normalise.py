"""LaTeX and plain notation brought to one spelling, in linear time."""

from __future__ import annotations

import re

_SPELLINGS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": r"\div ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "π": r"\pi ",
        "√": r"\sqrt ",
        "≈": r"\approx ",
        "²": "^2",
        "³": "^3",
        "€": r" \text{euros}",
        "∞": r"\infty ",
        "\u00a0": " ",
        "$": " ",
        "~": " ",
    }
)
_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]ig{1,2}[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])\.?"
    r"|(?<!\\)\\[()\[\]]"
)
_SPACE_COMMAND = re.compile(r"(?<!\\)\\[,;: ]|\\(?:quad|qquad)(?![A-Za-z])")
_DOUBLED = re.compile(
    r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|pi|text|left|right|leq?|geq?|neq?|in|cup|cap|infty|pm|cdot"
    r"|times|begin|end|boxed)(?![A-Za-z]))"
)
"""A backslash of JSON that was escaped once too often."""
_NEGATIVE_SPACE = re.compile(r"(?<!\\)\\!\s?")
_PRICE = re.compile(r"\s*(-?)\\\$\s?([0-9][0-9,]*(?:\.[0-9]+)?)\.?\s*", re.ASCII)
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])\s+(?=[0-9])", re.ASCII)
_ONE_IN_BRACES = re.compile(r"([_^])\{([A-Za-z0-9])\}", re.ASCII)
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s{0,8}\{([^{}]*)\}")
_PROSE = re.compile(r"[A-Za-z][A-Za-z' -]*", re.ASCII)
_CHOICE = re.compile(r"\(([A-Za-z])\)", re.ASCII)
_ASSIGNMENT = re.compile(r"\s*([A-Za-z])\s*=(?!=)", re.ASCII)

_MIN_PROSE_LETTERS = 4
"""A word in bare letters has at least this many; `abc` may well be a product."""


def normalised(text: str) -> str:
    """`text` without layout commands, dollar signs, a full stop at its end and braces around it."""
    price = _PRICE.fullmatch(text)
    if price is not None:
        return rf"{price[1]}{price[2]} \text{{dollars}}"
    # The backslash of a dollar sign must go with it.
    text = (
        _NEGATIVE_SPACE.sub("", _DOUBLED.sub("\\\\", text))
        .replace(r"\$", " ")
        .translate(_SPELLINGS)
    )
    text = _SPACE_COMMAND.sub(" ", _LAYOUT.sub(" ", text))
    text = " ".join(_FRACTION.sub(r"\\frac", text).split())
    text = text.removesuffix(".").rstrip()
    return without_outer_braces(text)


def text_key(text: str) -> str:
    """What two normalised texts share if they differ in nothing that matters.

    White space and the names of text commands do not matter, nor does case in prose, nor the
    parentheses around a letter that names a choice.
    """
    words = _WORDS.sub(r"\1", text)
    if is_prose(text):
        return " ".join(words.casefold().split())
    # 4 2 is not 42, nor 1 1/2 eleven halves.
    words = _BETWEEN_DIGITS.sub("_", words)
    key = _ONE_IN_BRACES.sub(r"\1\2", "".join(words.split()))
    choice = _CHOICE.fullmatch(key)
    return choice.group(1) if choice else key


def prose_key(text: str) -> str:
    """What two texts share that say the same words, in whatever case and type face."""
    return " ".join(_WORDS.sub(r"\1", text).casefold().split()).removesuffix(".")


def is_prose(text: str) -> bool:
    """Whether a normalised text is words, which only text can be compared with."""
    words = _WORDS.sub(r"\1", text).strip()
    if not _PROSE.fullmatch(words):
        return False
    num_letters = sum(character.isalpha() for character in words)
    return num_letters >= _MIN_PROSE_LETTERS or (words != text.strip() and num_letters > 1)


def split_assignment(text: str) -> tuple[str, str]:
    """`x = 5` → ("x", "5"); ("", text) for anything else."""
    match = _ASSIGNMENT.match(text)
    if match is None or "=" in text[match.end() :]:
        return "", text
    return match.group(1), text[match.end() :].strip()


def brackets_balance(text: str) -> bool:
    """Whether braces are balanced, and other brackets opened as often as closed.

    Half-open intervals mix kinds, as `[0, 1)` and `]0, 1[` do, so the kinds are counted together.
    """
    depth = 0
    position = 0
    num_round = 0
    num_square = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth < 0:
                return False
        elif character in "()":
            num_round += 1
        elif character in "[]":
            num_square += 1
        position += 1
    return depth == 0 and (num_round + num_square) % 2 == 0


def nesting_depth(text: str) -> int:
    """The largest number of brackets of any kind that are open at once."""
    depth = deepest = 0
    for character in text:
        if character in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")}]":
            depth = max(0, depth - 1)
    return deepest


def without_outer_braces(text: str) -> str:
    """`text` without blanks and braces around all of it: one pass finds each brace's partner."""
    text = text.strip()
    if not text.startswith("{"):
        return text
    partner: dict[int, int] = {}
    open_positions: list[int] = []
    escaped = False
    for position, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            open_positions.append(position)
        elif character == "}" and open_positions:
            partner[open_positions.pop()] = position
    start, end = 0, len(text)
    while True:
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if start >= end or partner.get(start) != end - 1:
            return text[start:end]
        start, end = start + 1, end - 1
