"""Whether a completion keeps to the script of its language. No model is asked.

A script is not a language: this keeps Chinese out of English reasoning, but cannot tell English
from French. Letters of formulae and code count as the letters they are, so a Chinese solution with
formulae does not reach 1.0; choose `min_share` by what good solutions reach.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass

from rewardsvc.verifiers.base import Verifier
from rewardsvc.verifiers.text import after_thinking
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict

_HAN = "CJK"
_WIDTHS = frozenset({"FULLWIDTH", "HALFWIDTH"})

SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("af", "ca", "cs", "cy", "da", "de", "en", "es", "et", "eu", "fi", "fr", "ga", "gl", "hr",
         "hu", "id", "is", "it", "lt", "lv", "ms", "mt", "nl", "no", "pl", "pt", "ro", "sk", "sl",
         "sq", "sv", "sw", "tl", "tr", "vi"),
        frozenset({"LATIN"}),
    ),
    **dict.fromkeys(("be", "bg", "kk", "mk", "mn", "ru", "uk"), frozenset({"CYRILLIC"})),
    **dict.fromkeys(("ar", "fa", "ps", "ur"), frozenset({"ARABIC"})),
    **dict.fromkeys(("hi", "mr", "ne"), frozenset({"DEVANAGARI"})),
    **dict.fromkeys(("he", "yi"), frozenset({"HEBREW"})),
    "sr": frozenset({"CYRILLIC", "LATIN"}),
    "am": frozenset({"ETHIOPIC"}),
    "bn": frozenset({"BENGALI"}),
    "el": frozenset({"GREEK"}),
    "gu": frozenset({"GUJARATI"}),
    "hy": frozenset({"ARMENIAN"}),
    "ja": frozenset({_HAN, "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"}),
    "ka": frozenset({"GEORGIAN"}),
    "km": frozenset({"KHMER"}),
    "kn": frozenset({"KANNADA"}),
    "ko": frozenset({"HANGUL"}),
    "lo": frozenset({"LAO"}),
    "ml": frozenset({"MALAYALAM"}),
    "my": frozenset({"MYANMAR"}),
    "pa": frozenset({"GURMUKHI"}),
    "si": frozenset({"SINHALA"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({_HAN, "BOPOMOFO", "IDEOGRAPHIC"}),
}  # fmt: skip
"""ISO 639-1 code of a language → scripts of its letters, as their Unicode names begin."""


def script_of(letter: str) -> str:
    """The script of one letter, as the first word of its Unicode name; "" if it has none."""
    words = unicodedata.name(letter, "").split()
    if len(words) > 1 and words[0] in _WIDTHS:
        return words[1]
    return words[0] if words else ""


def language_share(text: str, language: str) -> float | None:
    """The share of letters of `text` that are of the language's scripts.

    Args:
        text: Any text.
        language: A key of `SCRIPTS`.

    Returns:
        0.0 to 1.0; None if `text` has no letters.

    Raises:
        ValueError: If the language is not known.
    """
    scripts = SCRIPTS.get(language)
    if scripts is None:
        raise ValueError(f"language is {language[:20]!r}; give one of {', '.join(sorted(SCRIPTS))}")
    # Each distinct letter is looked up once.
    letters = {c: n for c, n in Counter(text).items() if c.isalpha()}
    if not letters:
        return None
    num_own = sum(count for letter, count in letters.items() if script_of(letter) in scripts)
    return num_own / sum(letters.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConsistency(Verifier):
    """Rewards the share of letters that belong to the language's script.

    Attributes:
        language: ISO 639-1 code, for all completions; None to have one given with each.
        min_share: The share from which the reward is 1.0, below which it is 0.0; None for the share
            itself as the reward.
        answer_only: Whether what stands inside `<think>…</think>` is left out.

    Raises:
        ValueError: If the language is not known or the share is out of range.

    Source: the language consistency reward of DeepSeek-AI, "DeepSeek-R1", arXiv:2501.12948, section
        2.3.2, which counts words of the target language; letters need no word lists.
    """

    language: str | None = None
    min_share: float | None = None
    answer_only: bool = False

    def __post_init__(self) -> None:
        if self.language is not None:
            language_share("", self.language)
        if self.min_share is not None and not 0.0 < self.min_share <= 1.0:
            raise ValueError(f"min_share is {self.min_share}; give more than 0 and at most 1")

    def verify(self, completion: str, language: str | None = None) -> Verdict:
        """How consistently the completion is written in the language's script.

        Args:
            completion: Any text.
            language: Of this sample; left out where the verifier has one.

        Returns:
            A verdict with the share, or with 0.0 or 1.0; NO_ANSWER for a text without letters,
            which proves nothing; BAD_REFERENCE without a reward if the language is not known.
        """
        text = after_thinking(completion) if self.answer_only else completion
        try:
            share = language_share(text or "", self.language or language or "")
        except ValueError as error:
            return Verdict.failed(ErrorKind.BAD_REFERENCE, str(error))
        if share is None:
            return Verdict.rejected("no letters", status=Status.NO_ANSWER)
        told = f"{share:.3f} of the letters"
        if self.min_share is not None:
            accepted = share >= self.min_share
            return Verdict.accepted(told) if accepted else Verdict.rejected(told)
        if share in (0.0, 1.0):
            return Verdict.accepted(told) if share else Verdict.rejected(told)
        return Verdict(status=Status.PARTIAL, reward=share, explanation=told)
