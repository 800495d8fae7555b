"""What can be seen in the texts alone: variety, repetition, sameness, refusals.

All work on sequences of tokens (ids, or words of a text); a completion without tokens counts as one
that has nothing to repeat.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass

Tokens = Sequence[Hashable]

OPENING_TOKENS = 8
REPEAT_N = 4
SELF_BLEU_N = 4
SELF_BLEU_TEXTS = 48
"""Self-BLEU compares each text with all others; more texts cost more and say little more."""

_REFUSAL = re.compile(
    r"^\W*(?:(?:i['’]?m|i am)\s+(?:really\s+|very\s+|so\s+)?(?:sorry|afraid|unable|not able)"
    r"|sorry\b|i\s+(?:can(?:no|['’])t|cannot|won['’]t|will not|must decline)"
    r"|as an ai\b|unfortunately,? i\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStats:
    """Statistics of the completions of one step, each in [0, 1].

    Sameness is measured between prompts: that the completions of one prompt agree is what a policy
    that has learned the answer does.

    Attributes:
        distinct_1: Different tokens, of all tokens.
        distinct_2: Different pairs of neighbours, of all pairs.
        self_bleu: How much of a completion is found in those of other prompts, mean.
        repeated_ngrams: Share of a completion's 4-grams that it has had before, mean.
        identical_openings: Share of prompts answered with the most frequent opening.
        identical: Share of prompts answered exactly as another prompt is.
        refusals: Share that begin like a refusal (English phrases).
        empty: Share without a token.
    """

    distinct_1: float
    distinct_2: float
    self_bleu: float
    repeated_ngrams: float
    identical_openings: float
    identical: float
    refusals: float
    empty: float

    def metrics(self) -> dict[str, float]:
        """By the names under which they are logged."""
        return {f"text/{name}": value for name, value in asdict(self).items()}


def text_stats(
    texts: Sequence[str],
    tokens: Sequence[Tokens] | None = None,
    prompts: Sequence[Hashable] | None = None,
) -> TextStats:
    """The statistics of some completions.

    Args:
        texts: Completions, at least one.
        tokens: Their token ids; words, separated by white space, if None.
        prompts: What each completes; all different if None. Of each prompt, the first completion
            is compared with those of others.

    Raises:
        ValueError: If there is no text, or numbers differ.
    """
    rows: list[Tokens] = [text.split() for text in texts]
    if tokens is not None:
        rows = [list(row) for row in tokens]
    names: Sequence[Hashable] = range(len(texts)) if prompts is None else prompts
    if not texts or not len(rows) == len(texts) == len(names):
        raise ValueError(
            f"{len(texts)} texts, {len(rows)} token lists, {len(names)} prompts; give one of each"
        )
    first: dict[Hashable, Tokens] = {}
    for name, row in zip(names, rows, strict=True):
        first.setdefault(name, row)
    answers = list(first.values())
    openings = Counter(tuple(row[:OPENING_TOKENS]) for row in answers if row)
    whole = Counter(tuple(row) for row in answers)
    return TextStats(
        distinct_1=distinct_n(rows, 1),
        distinct_2=distinct_n(rows, 2),
        self_bleu=self_bleu(answers),
        repeated_ngrams=math.fsum(repeated_ngrams(row) for row in rows) / len(rows),
        identical_openings=_most_shared(openings) / len(answers),
        identical=sum(count for count in whole.values() if count > 1) / len(answers),
        refusals=sum(is_refusal(text) for text in texts) / len(texts),
        empty=sum(not row for row in rows) / len(rows),
    )


def distinct_n(rows: Sequence[Tokens], n: int) -> float:
    """Different n-grams of all n-grams of all rows; 1 if there are none.

    Source: Li et al. 2016, arXiv:1510.03055, section 5.3.
    """
    grams = Counter(gram for row in rows for gram in _ngrams(row, n))
    total = grams.total()
    return len(grams) / total if total else 1.0


def repeated_ngrams(row: Tokens, n: int = REPEAT_N) -> float:
    """Share of a row's n-grams that occurred in it before; 0 if it is too short to have two."""
    grams = Counter(_ngrams(row, n))
    total = grams.total()
    return 1.0 - len(grams) / total if total else 0.0


def self_bleu(rows: Sequence[Tokens], max_n: int = SELF_BLEU_N) -> float:
    """Mean BLEU of each row against all others: 1 if they say the same, near 0 without overlap.

    Of many rows, an evenly spaced selection is compared.

    Source: Zhu et al. 2018, "Texygen", arXiv:1802.01886, section 3.2. With add-one smoothing above
        unigrams (Lin and Och 2004), and without the brevity penalty, which says nothing here.
    """
    step = max(1, math.ceil(len(rows) / SELF_BLEU_TEXTS))
    chosen = [row for row in rows[::step] if row]
    if len(chosen) < 2:
        return 0.0
    counted = [[Counter(_ngrams(row, n)) for n in range(1, max_n + 1)] for row in chosen]
    log_precision = [0.0] * len(chosen)
    orders = [0] * len(chosen)
    for n in range(max_n):
        highest, second = _two_highest([grams[n] for grams in counted])
        for index, grams in enumerate(counted):
            total = grams[n].total()
            if not total:
                continue
            shared = sum(
                min(count, highest[gram][0] if highest[gram][1] != index else second.get(gram, 0))
                for gram, count in grams[n].items()
            )
            smooth = 1 if n else 0
            precision = (shared + smooth) / (total + smooth)
            log_precision[index] += math.log(precision) if precision else -math.inf
            orders[index] += 1
    scores = [math.exp(total / num) for total, num in zip(log_precision, orders, strict=True)]
    return math.fsum(scores) / len(scores)


def is_refusal(text: str) -> bool:
    """Whether a text begins as refusals do, in English."""
    return _REFUSAL.match(text[:200]) is not None


def _most_shared(openings: Counter[tuple[Hashable, ...]]) -> int:
    """How many share the most frequent one; 0 if no two do."""
    most = max(openings.values(), default=0)
    return most if most > 1 else 0


def _ngrams(row: Tokens, n: int) -> Iterator[tuple[Hashable, ...]]:
    return zip(*(row[start:] for start in range(n)), strict=False)


def _two_highest(
    counters: Sequence[Counter[tuple[Hashable, ...]]],
) -> tuple[
    dict[tuple[Hashable, ...], tuple[int, int]],
    dict[tuple[Hashable, ...], int],
]:
    """For each n-gram, its highest count with the row that has it, and its highest in another row:
    the reference of a row is all others, and this gives it without a pass over all pairs.
    """
    highest: dict[tuple[Hashable, ...], tuple[int, int]] = {}
    second: dict[tuple[Hashable, ...], int] = {}
    for index, grams in enumerate(counters):
        for gram, count in grams.items():
            best = highest.get(gram)
            if best is None:
                highest[gram] = (count, index)
            elif count > best[0]:
                second[gram] = best[0]
                highest[gram] = (count, index)
            else:
                second[gram] = max(second.get(gram, 0), count)
    return highest, second
