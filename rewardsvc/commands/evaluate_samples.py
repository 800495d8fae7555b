"""What `rewardsvc evaluate best-of-n` reads from rows, and what it makes of the numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rewardsvc.policy_client.evaluation import (
    BestOfNCurve,
    Calibration,
    PassAtK,
    best_of_n_curve,
    calibration,
    majority_vote,
    pass_at_k,
)
from rewardsvc.policy_client.train.data import DataError, Example, Text
from rewardsvc.policy_client.train.data.examples import check_number

Votes = list[list[Hashable | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """Several completions of each problem.

    Attributes:
        num_problems: Rows.
        num_samples: Completions in all of them.
        num_rewards_missing: Completions of which nobody knows whether they are right.
        num_scores_missing: Completions without a score; None if nothing scores them.
        pass_at_k: By k.
        majority_vote: Share of problems whose most frequent answer is right; NaN if nothing votes.
        weighted_majority_vote: The same with scores as votes; NaN if one is negative.
        num_voted: Problems that the first is the mean of.
        best_of_n: Quality of the best-scored of n; None without scores.
        calibration: Of scores that are all in [0, 1], as probabilities; None for others.
    """

    num_problems: int
    num_samples: int
    num_rewards_missing: int
    num_scores_missing: int | None
    pass_at_k: dict[int, PassAtK]
    majority_vote: float
    weighted_majority_vote: float
    num_voted: int
    best_of_n: BestOfNCurve | None
    calibration: Calibration | None


def sample_report(
    rewards: Sequence[Sequence[float]],
    scores: Sequence[Sequence[float]] | None,
    votes: Votes | None,
    ks: Sequence[int],
) -> SampleReport:
    """The statistics.

    Args:
        rewards: [P][N], above 1/2 is right; NaN where there is none. N may differ.
        scores: [P][N] to choose by; NaN where there is none; None if nothing scores.
        votes: [P][N] answers; None in a row has no vote; None if nothing votes.
        ks: Numbers of samples.
    """
    all_rewards = [value for row in rewards for value in row]
    all_scores = [value for row in scores or () for value in row]
    known = [value for value in all_scores if not math.isnan(value)]
    plain, weighted = [math.nan], [math.nan]
    if votes is not None:
        plain = [majority_vote(row, right) for row, right in zip(votes, rewards, strict=True)]
        if scores is not None and known and min(known) >= 0:
            weighted = [
                majority_vote(row, right, weights=weights)
                for row, right, weights in zip(votes, rewards, scores, strict=True)
            ]
    squashed = bool(known) and min(known) >= 0 and max(known) <= 1
    return SampleReport(
        num_problems=len(rewards),
        num_samples=len(all_rewards),
        num_rewards_missing=sum(map(math.isnan, all_rewards)),
        num_scores_missing=None if scores is None else len(all_scores) - len(known),
        pass_at_k={k: pass_at_k(rewards, k) for k in ks},
        majority_vote=_mean(plain),
        weighted_majority_vote=_mean(weighted),
        num_voted=sum(not math.isnan(value) for value in plain),
        best_of_n=None if scores is None else best_of_n_curve(scores, rewards, ks),
        calibration=calibration(all_scores, all_rewards) if squashed else None,
    )


def completions_of(row: Example) -> list[Text]:
    """The column `completions`.

    Raises:
        DataError: If it is missing, empty or no list.
    """
    found = row.metadata.get("completions")
    if not isinstance(found, list | tuple) or not found:
        raise DataError(
            f"{row.where}: column 'completions': a list of at least one completion is needed, got "
            f"{found!r}"
        )
    for number, text in enumerate(found):
        if not isinstance(text, str | list):
            raise DataError(
                f"{row.where}: column 'completions', entry {number}: text or a list of messages is "
                f"needed, got {text!r}"
            )
    return list(found)


def numbers_of(
    rows: Sequence[Example], texts: Sequence[Sequence[Text]], column: str
) -> list[list[float]] | None:
    """A column with a number for each completion; null is NaN. None if no row has the column.

    Raises:
        DataError: If only some rows have it, or one is malformed.
    """
    if not any(column in row.metadata for row in rows):
        return None
    return [
        [
            math.nan if value is None else check_number(value, column, row.where)
            for value in _beside(row, some, column)
        ]
        for row, some in zip(rows, texts, strict=True)
    ]


def votes_of(
    rows: Sequence[Example], texts: Sequence[Sequence[Text]], extract: str | None
) -> Votes | None:
    """Answers to vote by: from the column `answers`, or out of the completions.

    Raises:
        DataError: If `extract` is unknown or the column is malformed.
    """
    if extract == "math":
        return [[_math_answer(text) for text in some] for some in texts]
    if extract is not None:
        raise DataError(f"--extract: {extract!r} is unknown; use 'math', or the column `answers`")
    if not any("answers" in row.metadata for row in rows):
        return None
    return [
        [None if value is None else str(value) for value in _beside(row, some, "answers")]
        for row, some in zip(rows, texts, strict=True)
    ]


def counts(text: str | None, *, most: int) -> list[int]:
    """Numbers of samples: those given, or powers of two up to `most`.

    Raises:
        DataError: If one is not from 1 to `most`.
    """
    if text is None:
        return [2**power for power in range(most.bit_length())]
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or not 1 <= int(part) <= most:
            raise DataError(
                f"--k: {part!r} is not a number from 1 to {most}, the most completions of a row"
            )
    return sorted({int(part) for part in parts})


def _beside(row: Example, texts: Sequence[Text], column: str) -> Sequence[object]:
    """A list as long as that of the completions."""
    found = row.metadata.get(column)
    if not isinstance(found, list | tuple) or len(found) != len(texts):
        raise DataError(
            f"{row.where}: column {column!r}: a list of {len(texts)}, one for each completion, is "
            f"needed, got {found!r}"
        )
    return found


def _math_answer(text: Text) -> Hashable | None:
    """What the mathematics verifier reads: numbers by value, all else as text."""
    from rewardsvc.verifiers.math.extract import Extracted, extract_math_answer
    from rewardsvc.verifiers.math.normalise import split_assignment, text_key
    from rewardsvc.verifiers.math.rational import parse_rational

    said = text if isinstance(text, str) else text[-1]["content"] if text else ""
    found = extract_math_answer(said)
    if not isinstance(found, Extracted):
        return None
    keys: list[Hashable] = []
    for answer in found.answers:
        number = parse_rational(split_assignment(answer)[1])
        keys.append(text_key(answer) if number is None else (number.value, number.percent))
    return tuple(keys)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
