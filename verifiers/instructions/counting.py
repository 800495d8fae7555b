"""What is counted in responses. All functions take any text, in linear time."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
# The look-behind keeps a long run of full stops from being tried from each of them.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)\]*_]{0,4}(?=\s|$)|[。！？]+")
_LAST_WORD = re.compile(r"[\w.]{1,20}$")
_ABBREVIATIONS = frozenset(
    {"dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "cf", "no",
     "fig", "eq", "approx", "inc", "ltd", "co", "p.s"}
)  # fmt: skip
_LOOK_BACK_CHARS = 20


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, so "it's" is two."""
    return _WORD.findall(text)


def paragraphs(text: str) -> list[str]:
    """What blank lines separate, without what is blank itself."""
    return [part.strip() for part in _BLANK_LINES.split(text) if part.strip()]


def count_sentences(text: str) -> int:
    """How many sentences `text` has.

    A sentence ends at `.`, `!`, `?` or `…` before white space, at their CJK forms, and with its
    paragraph. A full stop after a common abbreviation, a single capital letter or a list number at
    the start of a line ends none.
    """
    return sum(_sentences_of_paragraph(paragraph) for paragraph in paragraphs(text))


def _sentences_of_paragraph(paragraph: str) -> int:
    num_sentences = 0
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        if end.group() == "." and _is_abbreviation(paragraph, end.start()):
            continue
        if _WORD.search(paragraph, start, end.start()):
            num_sentences += 1
        # Also where there was no word: what was looked through once is not looked through again.
        start = end.end()
    return num_sentences + (_WORD.search(paragraph, start) is not None)


def _is_abbreviation(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` belongs to the word before it."""
    back = max(0, stop - _LOOK_BACK_CHARS)
    found = _LAST_WORD.search(text, back, stop)
    if found is None:
        return False
    word = found.group()
    at_line_start = found.start() == 0 or text[found.start() - 1] == "\n"
    if word.isdecimal():
        return at_line_start
    return (len(word) == 1 and word.isupper() and word != "I") or word.lower() in _ABBREVIATIONS


def count_keyword(text: str, keyword: str) -> int:
    """How often `keyword` stands in `text` as a whole word or phrase, whatever the case."""
    text, keyword = text.casefold(), keyword.casefold()
    num_found = 0
    position = text.find(keyword)
    while position >= 0:
        end = position + len(keyword)
        whole = not (
            (_is_word(text, position - 1) and _is_word(keyword, 0))
            or (_is_word(text, end) and _is_word(keyword, len(keyword) - 1))
        )
        num_found += whole
        position = text.find(keyword, end if whole else position + 1)
    return num_found


def _is_word(text: str, index: int) -> bool:
    return 0 <= index < len(text) and (text[index].isalnum() or text[index] == "_")
