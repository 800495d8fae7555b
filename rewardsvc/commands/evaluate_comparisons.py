"""Two policies' completions of the same prompts, for `rewardsvc evaluate win-rate`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rewardsvc.commands.evaluate_samples import completions_of, numbers_of
from rewardsvc.policy_client.evaluation import (
    LengthControlled,
    WinRate,
    length_controlled_win_rate,
    win_rate,
)
from rewardsvc.policy_client.train.data import DataError, Example, Examples, Text
from rewardsvc.policy_client.train.data.examples import check_number

OWN_COLUMNS = ("completions", "score", "scores")
"""What a row says of its completions; a judge is not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One completion of each side, of the same prompt.

    Attributes:
        example: Our row, with what a judge is told beside the prompt.
        ours: Text or messages.
        theirs: Likewise.
        scores: Ours and theirs, where the data has scores; NaN where there is none.
        prompt: What tells prompts apart.
    """

    example: Example
    ours: Text
    theirs: Text
    scores: tuple[float, float]
    prompt: str

    @property
    def length_difference(self) -> int:
        """Characters by which ours is longer."""
        return num_characters(self.ours) - num_characters(self.theirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class WinReport:
    """What comes of all comparisons.

    Attributes:
        overall: Over all of them.
        subsets: By name; empty if there are none.
        length_controlled: As if both sides were equally long.
        mean_lengths: Characters of our and of their completions.
        num_prompts: How many different ones.
    """

    overall: WinRate
    subsets: dict[str, WinRate]
    length_controlled: LengthControlled
    mean_lengths: tuple[float, float]
    num_prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    example: Example
    completion: Text
    score: float


def comparisons(
    ours: Examples, theirs: Examples, *, with_scores: bool, part: bool = False
) -> list[Comparison]:
    """Pairs the completions of each prompt, the first with the first and so on.

    Where one side has a single completion of a prompt, it is compared with each of the other's.

    Args:
        ours: Rows with `completion`, or several `completions`. Rows of one prompt add up.
        theirs: Likewise, of the same prompts, in any order.
        with_scores: Read the columns `score` or `scores`.
        part: Ours are not all there are; further prompts of theirs do not count.

    Raises:
        DataError: If a row is malformed, prompts differ, or numbers of completions do not fit.
    """
    mine, other = _by_prompt(ours, with_scores), _by_prompt(theirs, with_scores)
    if part:
        other = {key: sides for key, sides in other.items() if key in mine}
    for some, rest, source in ((mine, other, theirs.source), (other, mine, ours.source)):
        lacking = [key for key in some if key not in rest]
        if lacking:
            raise DataError(
                f"{some[lacking[0]][0].example.where}: {source} has no completion of this prompt, "
                f"nor of {len(lacking) - 1} others of {len(some)}; both need the same prompts"
            )
    found = []
    for key, sides in mine.items():
        against = other[key]
        if len(sides) != len(against) and min(len(sides), len(against)) != 1:
            raise DataError(
                f"{sides[0].example.where}: {len(sides)} completions of this prompt against "
                f"{len(against)} in {theirs.source}; give equally many, or one on a side"
            )
        for number in range(max(len(sides), len(against))):
            one, two = sides[number % len(sides)], against[number % len(against)]
            found.append(
                Comparison(
                    example=one.example,
                    ours=one.completion,
                    theirs=two.completion,
                    scores=(one.score, two.score),
                    prompt=key,
                )
            )
    return found


def report_of(
    compared: Sequence[Comparison],
    scores: Sequence[tuple[float, float]],
    subsets: Sequence[str] | None,
    confidence: float,
) -> WinReport:
    """The statistics.

    Args:
        compared: All comparisons, at least one.
        scores: Of each, ours and theirs; NaN where there is none.
        subsets: Of each; all are one if None.
        confidence: Of the intervals.
    """
    prompts = [one.prompt for one in compared]
    num_prompts = len(set(prompts))
    # Comparisons of one prompt are not independent of each other.
    groups = prompts if num_prompts < len(prompts) else None
    ours, theirs = [one for one, _ in scores], [other for _, other in scores]

    def rate(rows: Sequence[int]) -> WinRate:
        return win_rate(
            [ours[row] for row in rows],
            [theirs[row] for row in rows],
            groups=None if groups is None else [groups[row] for row in rows],
            confidence=confidence,
        )

    by_subset: dict[str, list[int]] = {}
    for row, name in enumerate(subsets or ()):
        by_subset.setdefault(name, []).append(row)
    return WinReport(
        overall=rate(range(len(compared))),
        subsets={name: rate(rows) for name, rows in by_subset.items()},
        length_controlled=length_controlled_win_rate(
            [_points(*pair) for pair in scores],
            [one.length_difference for one in compared],
            groups=groups,
            confidence=confidence,
        ),
        mean_lengths=(
            sum(num_characters(one.ours) for one in compared) / len(compared),
            sum(num_characters(one.theirs) for one in compared) / len(compared),
        ),
        num_prompts=num_prompts,
    )


def num_characters(text: Text) -> int:
    """Of text, or of all messages of a completion."""
    if isinstance(text, str):
        return len(text)
    return sum(len(message["content"]) for message in text)


def _points(ours: float, theirs: float) -> float:
    if math.isnan(ours) or math.isnan(theirs):
        return math.nan
    return 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0


def _by_prompt(examples: Examples, with_scores: bool) -> dict[str, list[_Side]]:
    found: dict[str, list[_Side]] = {}
    for row in examples:
        sides = found.setdefault(json.dumps(row.prompt, sort_keys=True), [])
        sides += _sides(row, with_scores)
    return found


def _sides(row: Example, with_scores: bool) -> list[_Side]:
    if row.completion is not None and "completions" in row.metadata:
        raise DataError(f"{row.where}: columns 'completion' and 'completions'; give one of them")
    if row.completion is None:
        texts = completions_of(row)
        scores = (numbers_of([row], [texts], "scores") or [[]])[0] if with_scores else []
    else:
        texts = [row.completion]
        value = row.metadata.get("score") if with_scores else None
        scores = [math.nan if value is None else check_number(value, "score", row.where)]
    return [
        _Side(example=row, completion=text, score=score)
        for text, score in zip(texts, scores or [math.nan] * len(texts), strict=True)
    ]
