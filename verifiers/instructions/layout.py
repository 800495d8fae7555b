"""Checks of how a response is laid out. Each returns what is amiss, or "" where nothing is."""

from __future__ import annotations

import re

from rewardsvc.verifiers.json_document import unfenced
from rewardsvc.verifiers.json_format import json_problem

# None of these can backtrack: what may repeat excludes what must follow it.
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TITLE = re.compile(r"<<([^<>\n]+)>>")
_HIGHLIGHT = re.compile(r"\*\*([^\s*][^\n*]*)\*\*|\*([^\s*][^\n*]*)\*")
_BULLETS = ("* ", "- ", "+ ", "• ")
_PARAGRAPH_DIVIDER = "***"
_RESPONSE_DIVIDER = "******"


def number_paragraphs(text: str, *, num_paragraphs: int) -> str:
    """So many paragraphs between `***` dividers, none of them blank."""
    parts = [part.strip() for part in text.split(_PARAGRAPH_DIVIDER)]
    # A divider may stand before the first and after the last paragraph.
    if parts and not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    if not all(parts):
        return "a blank paragraph"
    return "" if len(parts) == num_paragraphs else f"{len(parts)} paragraphs, not {num_paragraphs}"


def number_placeholders(text: str, *, num_placeholders: int) -> str:
    """At least so many placeholders such as `[address]`."""
    return _at_least(len(_PLACEHOLDER.findall(text)), num_placeholders, "placeholders")


def postscript(text: str, *, postscript_marker: str) -> str:
    """A line that begins with the marker, whatever its case and spacing, and says something."""
    marker = _squeezed(postscript_marker)
    for line in text.splitlines():
        said = _squeezed(line.lstrip(" \t*_#>"))
        if said.startswith(marker) and any(c.isalnum() for c in said[len(marker) :]):
            return ""
    return f"no postscript {postscript_marker[:20]!r}"


def number_bullet_lists(text: str, *, num_bullets: int) -> str:
    """Exactly so many lines that are bullet points."""
    num = sum(line.lstrip().startswith(_BULLETS) for line in text.splitlines())
    return "" if num == num_bullets else f"{num} bullet points, not {num_bullets}"


def number_highlighted_sections(text: str, *, num_highlights: int) -> str:
    """At least so many different parts between asterisks."""
    found = {(double or single).strip() for double, single in _HIGHLIGHT.findall(text)}
    return _at_least(len(found), num_highlights, "highlighted sections")


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> str:
    """At least so many lines with the word and a number of their own, such as "Section 2"."""
    word = section_spliter.casefold()
    numbers = set()
    for line in text.splitlines():
        said = line.strip(" \t*_#").casefold()
        if said.startswith(word):
            digits = re.match(r"\s{0,4}(\d{1,9})", said[len(word) :])
            if digits:
                numbers.add(int(digits[1]))
    return _at_least(len(numbers), num_sections, f"sections named {section_spliter[:20]!r}")


def json_format(text: str) -> str:
    """One JSON object or array, perhaps in a Markdown fence."""
    return json_problem(unfenced(text))


def title(text: str) -> str:
    """A title in double angular brackets."""
    found = any(name.strip() for name in _TITLE.findall(text))
    return "" if found else "no title such as <<title>>"


def two_responses(text: str) -> str:
    """Two different responses with six asterisks between them."""
    parts = [part.strip() for part in text.split(_RESPONSE_DIVIDER)]
    if len(parts) != 2 or not all(parts):
        return f"no two responses with {_RESPONSE_DIVIDER} between them"
    return "" if parts[0] != parts[1] else "twice the same response"


def quotation(text: str) -> str:
    """The whole of it between double quotation marks."""
    said = text.strip()
    quoted = len(said) > 2 and said.startswith('"') and said.endswith('"')
    return "" if quoted else "not between double quotation marks"


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()


def _at_least(num: int, wanted: int, what: str) -> str:
    return "" if num >= wanted else f"{num} {what}, not at least {wanted}"
