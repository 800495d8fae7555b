"""Checks of what is written. Each returns what is amiss, in words, or "" where nothing is."""

from __future__ import annotations

from collections.abc import Sequence

from rewardsvc.verifiers.instructions.counting import (
    count_keyword,
    count_sentences,
    paragraphs,
    words,
)
from rewardsvc.verifiers.instructions.parameters import Relation
from rewardsvc.verifiers.language import language_share

_COMMAS = ",，،、"
_MIN_SHARE = 0.9
"""Formulae and names of other scripts may stand in a text of one language."""
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def keywords_exist(text: str, *, keywords: Sequence[str]) -> str:
    """All of the keywords are there."""
    missing = [word for word in keywords if not count_keyword(text, word)]
    return f"without {missing[0]!r}" if missing else ""


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> str:
    """The keyword is there as often as asked."""
    return _compared(count_keyword(text, keyword), frequency, relation, repr(keyword))


def no_forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> str:
    """None of the words is there."""
    found = [word for word in forbidden_words if count_keyword(text, word)]
    return f"with {found[0]!r}" if found else ""


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> str:
    """The letter is there, in either case, as often as asked."""
    num = text.casefold().count(letter.casefold())
    return _compared(num, let_frequency, let_relation, repr(letter))


def response_language(text: str, *, language: str) -> str:
    """At least nine tenths of the letters are of the language's scripts."""
    share = language_share(text, language)
    if share is None:
        return "no letters"
    return "" if share >= _MIN_SHARE else f"{share:.2f} of the letters are of {language}"


def number_words(text: str, *, num_words: int, relation: Relation) -> str:
    """As many words as asked."""
    return _compared(len(words(text)), num_words, relation, "words")


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> str:
    """As many sentences as asked."""
    return _compared(count_sentences(text), num_sentences, relation, "sentences")


def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> str:
    """So many paragraphs between blank lines, one of which begins with a word."""
    parts = paragraphs(text)
    if len(parts) != num_paragraphs:
        return f"{len(parts)} paragraphs, not {num_paragraphs}"
    if nth_paragraph > len(parts):
        return f"no paragraph {nth_paragraph}"
    first = words(parts[nth_paragraph - 1])[:1]
    if first and first[0].casefold() == first_word.casefold():
        return ""
    return f"paragraph {nth_paragraph} does not begin with {first_word!r}"


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: Relation) -> str:
    """As many words in capital letters alone as asked."""
    num = sum(word.isupper() for word in words(text))
    return _compared(num, capital_frequency, capital_relation, "words in capitals")


def english_capital(text: str) -> str:
    """English, and no lower-case letter."""
    problem = response_language(text, language="en")
    return problem or ("" if text.isupper() else "lower-case letters")


def english_lowercase(text: str) -> str:
    """English, and no capital letter."""
    problem = response_language(text, language="en")
    return problem or ("" if text.islower() else "capital letters")


def no_comma(text: str) -> str:
    """No comma of any script."""
    return "a comma" if any(comma in text for comma in _COMMAS) else ""


def starts_with(text: str, *, start_phrase: str) -> str:
    """It begins with the phrase, whatever the case."""
    if text.strip().casefold().startswith(start_phrase.casefold()):
        return ""
    return f"it does not start with {start_phrase[:40]!r}"


def ends_with(text: str, *, end_phrase: str) -> str:
    """It ends with the phrase, whatever the case, and perhaps a closing quotation mark."""
    if text.strip().strip('"').strip().casefold().endswith(end_phrase.strip('"').casefold()):
        return ""
    return f"it does not end with {end_phrase[:40]!r}"


def repeats_prompt(text: str, *, prompt_to_repeat: str) -> str:
    """It begins with the request, word for word, and goes on."""
    said, request = text.strip().casefold(), prompt_to_repeat.casefold()
    if not said.startswith(request):
        return "it does not begin with the request"
    return "" if said[len(request) :].strip() else "nothing after the request"


def constrained_response(text: str, *, options: Sequence[str] = _CONSTRAINED) -> str:
    """It has exactly one of the options."""
    num_found = sum(option in text for option in options)
    return "" if num_found == 1 else f"{num_found} of the options"


def _compared(num: int, wanted: int, relation: Relation, what: str) -> str:
    return "" if relation.holds(num, wanted) else f"{num} {what}, not {relation} {wanted}"
