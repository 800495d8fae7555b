"""Scores of many completions for `rewardsvc evaluate`, with what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rewardsvc.policy_client import RewardClient, ScoreBatch
from rewardsvc.policy_client.train.data import Example

SAMPLES_PER_CALL = 64
CALLS_IN_FLIGHT = 4
"""Enough that a server forms full batches while answers are on their way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Completions of one prompt that are scored in one call.

    Attributes:
        example: The row: prompt, answer, and everything else a scorer may want.
        completions: Text or messages.
        left_out: Columns that the scorer is not told.
    """

    example: Example
    completions: tuple[Any, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What came of it.

    Attributes:
        values: A score for each completion of each unit; NaN where there is none.
        errors: What went wrong → how often. At most one message for each code.
    """

    values: list[list[float]]
    errors: dict[str, int]

    @property
    def first_error(self) -> str:
        """The most frequent error, for messages."""
        return max(self.errors, key=lambda what: self.errors[what], default="no error was told")


def score_units(client: RewardClient, scorer: str, units: Sequence[Unit]) -> Scored:
    """Scores all completions.

    Raises:
        RewardClientError: If a call as a whole failed.
        TypeError: If a column cannot be sent; names it.
        ValueError: The same.
    """
    values: list[list[float]] = []
    counts: Counter[str] = Counter()
    messages: dict[str, str] = {}
    with ThreadPoolExecutor(CALLS_IN_FLIGHT) as pool:
        calls = list(_calls(units))
        batches = pool.map(lambda call: _score(client, scorer, call), calls)
        for call, batch in zip(calls, batches, strict=True):
            left = iter(float(value) for value in batch.values)
            values += [[next(left) for _ in unit.completions] for unit in call]
            for error in batch.errors:
                if error is not None:
                    counts[str(error.code)] += 1
                    messages.setdefault(str(error.code), error.message)
    return Scored(
        values=values,
        errors={f"{code}: {messages[code]}": number for code, number in counts.most_common()},
    )


def _calls(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Whole units, and no prompt twice in a call: a preference model takes the completions of a
    prompt that are in one call for a group, and would compare those of two pairs.
    """
    call: list[Unit] = []
    prompts: set[str] = set()
    num_samples = 0
    for unit in units:
        prompt = repr(unit.example.prompt)
        if call and (prompt in prompts or num_samples + len(unit.completions) > SAMPLES_PER_CALL):
            yield call
            call, prompts, num_samples = [], set(), 0
        call.append(unit)
        prompts.add(prompt)
        num_samples += len(unit.completions)
    if call:
        yield call


def _score(client: RewardClient, scorer: str, call: Sequence[Unit]) -> ScoreBatch:
    rows = [(unit, completion) for unit in call for completion in unit.completions]
    return client.score(
        scorer,
        [unit.example.prompt for unit, _ in rows],
        [completion for _, completion in rows],
        answers=[unit.example.answer for unit, _ in rows],
        tests=[unit.example.metadata.get("tests") for unit, _ in rows],
        rubrics=[unit.example.metadata.get("rubric") for unit, _ in rows],
        metadata=[_metadata(unit) for unit, _ in rows],
    )


def _metadata(unit: Unit) -> dict[str, Any] | None:
    left_out = {*unit.left_out, "tests", "rubric"}
    told = {name: value for name, value in unit.example.metadata.items() if name not in left_out}
    return told or None
