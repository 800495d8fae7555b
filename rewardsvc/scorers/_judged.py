"""Base of the scorers that are one verifier: arguments by name from the sample, off the event loop.

Verifiers are pure computation with bounded time, but of a whole call that may be seconds; they run
on a thread, and stop between two samples when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from rewardsvc.errors import DeadlinePassedError, ItemFailure
from rewardsvc.scorers._verdicts import broken, score_of
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.context import current_call
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.base import Judge


class JudgedScorer(Scorer):
    """Scores each sample with one verifier; subclasses only build it."""

    def __init__(self, verifier: Any, env: BuildEnv) -> None:
        """Keeps the verifier.

        Args:
            verifier: Has a `verify`, whose parameters are found by `arguments_of`.
            env: The surroundings.
        """
        self._judge = Judge.of(verifier)
        self._name = env.name

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Judges each completion."""
        seconds_left = current_call().seconds_left()
        nobody_waits = threading.Event()
        try:
            async with asyncio.timeout(None if seconds_left == float("inf") else seconds_left):
                return await asyncio.to_thread(self._score_all, samples, nobody_waits)
        except TimeoutError as error:
            raise DeadlinePassedError(f"{self._name}: the deadline passed") from error
        finally:
            nobody_waits.set()

    def _score_all(self, samples: Sequence[Sample], nobody_waits: threading.Event) -> list[Score]:
        scores = []
        for sample in samples:
            if nobody_waits.is_set():
                break
            try:
                scores.append(score_by_name(self._judge, sample))
            except Exception as error:  # a bug is this sample's error and no reward
                scores.append(broken(self._name, error))
        return scores


def score_by_name(judge: Judge, sample: Sample) -> Score:
    """The score of one sample; an `ItemFailure` on the way is its error."""
    try:
        return score_of(judge(arguments_of(sample, judge.parameters)))
    except ItemFailure as failure:
        return Score(error=failure.error)


def arguments_of(sample: Sample, names: Sequence[str]) -> dict[str, Any]:
    """Values of a verifier's parameters by name.

    `completion` and `prompt` are text; `answer`, `rubric` and `tests` (the JSON text) are the
    sample's; any other name is looked up in the metadata.

    Raises:
        ItemFailure: INVALID_SAMPLE, if a text is needed and the sample has token ids.
    """
    values: dict[str, Any] = {name: sample.metadata.get(name) for name in names}
    if "completion" in names:
        values["completion"] = sample.completion_text
    if "prompt" in names:
        values["prompt"] = sample.prompt_text
    fields = {"answer": sample.answer, "rubric": sample.rubric, "tests": sample.tests_json}
    values.update({name: value for name, value in fields.items() if value is not None})
    return {name: values[name] for name in names}
