"""What all combinators share: children are scored side by side, then each sample is combined.

* A child named twice is scored once.
* An error of any child is the sample's error, its message prefixed with the child's name. It is
  never taken for 0, so a product of 0 and an error is an error too.
* The children's values appear as components under their names, and their components as
  "child/component".
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import abstractmethod
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from rewardsvc.errors import ItemError
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.types import Sample, Score

_T = TypeVar("_T")


class Combinator(Scorer):
    """A scorer that makes one score of its children's scores of the same sample."""

    def __init__(self, children: Iterable[str], env: BuildEnv) -> None:
        self._children = {name: env.child(name) for name in dict.fromkeys(children)}

    @property
    def version(self) -> str:
        """A digest of the children's versions; empty if none of them has one."""
        return joint_version({name: child.version for name, child in self._children.items()})

    @property
    def is_serving(self) -> bool:
        """Whether all children can answer."""
        return all(child.is_serving for child in self._children.values())

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Scores each sample with every child and combines what they say."""
        columns = await gather_or_cancel(
            [child.score(samples) for child in self._children.values()]
        )
        rows = zip(*columns, strict=True)
        return [self._score_row(dict(zip(self._children, row, strict=True))) for row in rows]

    def _score_row(self, scores: Mapping[str, Score]) -> Score:
        error = first_error(scores)
        return Score(error=error) if error else self.combine(scores)

    @abstractmethod
    def combine(self, scores: Mapping[str, Score]) -> Score:
        """One sample's score from its children's by name, in the order of the configuration.

        Called only with scores that have values.
        """


def value_of(score: Score) -> float:
    """The value of a score that has one."""
    assert score.value is not None
    return score.value


def values_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """The values of scores that have one."""
    return {name: value_of(score) for name, score in scores.items()}


def first_error(scores: Mapping[str, Score]) -> ItemError | None:
    """The first child's error, prefixed with the child's name; None if all have values."""
    for name, score in scores.items():
        if score.error is not None:
            error = score.error
            return ItemError(error.code, f"{name}: {error.message}", error.retryable)
    return None


def components_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """The children's values and components, named "child" and "child/component"."""
    components: dict[str, float] = {}
    for name, score in scores.items():
        components[name] = value_of(score)
        components.update({f"{name}/{part}": v for part, v in score.components.items()})
    return components


def explanations_of(scores: Mapping[str, Score]) -> str:
    """What the children say, one after another, each with its name."""
    return "; ".join(f"{name}: {s.explanation}" for name, s in scores.items() if s.explanation)


def joint_version(versions: Mapping[str, str]) -> str:
    """A short digest of named versions; empty if all are."""
    if not any(versions.values()):
        return ""
    text = "\n".join(f"{name}={version}" for name, version in versions.items())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


async def gather_or_cancel(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Awaits all calls side by side; if one raises, cancels the others before passing it on."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
