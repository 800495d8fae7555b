"""What a call to score gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemError
from rewardsvc.policy_client.client.errors import ScoringFailed
from rewardsvc.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemScore:
    """What came of one sample: a value, or an error.

    Attributes:
        id: The sample's id.
        value: The reward, or None where there is none.
        components: The named parts that the value was made of.
        steps: float32 [S], a process reward for each step; empty for outcome rewards.
        verdict: How a verifier judged it; None for learned rewards, and for verdicts that this
            client is too old to know.
        explanation: How the verdict was reached, for people.
        error: Why there is no reward; set if and only if `value` is None.
        version: The scorer's version at the time of scoring.
    """

    id: str = ""
    value: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    steps: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    verdict: Verdict | None = None
    explanation: str = ""
    error: ItemError | None = None
    version: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a reward."""
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreBatch:
    """Scores of N samples, one column an attribute, in the order of the samples.

    Attributes:
        ids: [N], as given; the position where none was given.
        values: float32 [N]; NaN where there is no reward.
        components: float32 [N] each; NaN where an item has no such part.
        steps: [N] arrays float32 [S], S may be 0; None if no item has steps.
        verdicts: [N]; see `ItemScore.verdict`.
        explanations: [N], for people.
        errors: [N]; why an item has no reward, None where it has one.
        versions: [N], the scorer's version when each item was scored; they differ if the scorer
            was reloaded meanwhile. Empty for items that never reached a server.
    """

    ids: Sequence[str]
    values: NDArray[np.float32]
    components: Mapping[str, NDArray[np.float32]]
    steps: Sequence[NDArray[np.float32]] | None
    verdicts: Sequence[Verdict | None]
    explanations: Sequence[str]
    errors: Sequence[ItemError | None]
    versions: Sequence[str]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """bool [N]: whether there is a reward."""
        return ~np.isnan(self.values)

    @property
    def version(self) -> str:
        """The scorer's version; if there were several, all of them with "|" between."""
        return "|".join(dict.fromkeys(version for version in self.versions if version))

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> ItemScore: ...
    @overload
    def __getitem__(self, index: slice) -> ScoreBatch: ...
    def __getitem__(self, index: int | slice) -> ItemScore | ScoreBatch:
        if isinstance(index, slice):
            return ScoreBatch(
                ids=self.ids[index],
                values=self.values[index],
                components={name: column[index] for name, column in self.components.items()},
                steps=None if self.steps is None else self.steps[index],
                verdicts=self.verdicts[index],
                explanations=self.explanations[index],
                errors=self.errors[index],
                versions=self.versions[index],
            )
        value = float(self.values[index])
        return ItemScore(
            id=self.ids[index],
            value=None if np.isnan(value) else value,
            components={
                name: float(column[index])
                for name, column in self.components.items()
                if not np.isnan(column[index])
            },
            steps=np.empty(0, np.float32) if self.steps is None else self.steps[index],
            verdict=self.verdicts[index],
            explanation=self.explanations[index],
            error=self.errors[index],
            version=self.versions[index],
        )

    def __iter__(self) -> Iterator[ItemScore]:
        return (self[index] for index in range(len(self)))

    def raise_for_errors(self) -> None:
        """Raises if an item has no reward.

        Raises:
            ScoringFailed: Names the first such item and holds them all.
        """
        failed = [(i, e) for i, e in zip(self.ids, self.errors, strict=True) if e is not None]
        if failed:
            raise ScoringFailed(failed, len(self))

    @staticmethod
    def concat(batches: Sequence[ScoreBatch]) -> ScoreBatch:
        """The rows of all batches, one batch after another."""
        names = dict.fromkeys(name for batch in batches for name in batch.components)
        no_steps = np.empty(0, np.float32)
        steps = [
            step
            for batch in batches
            for step in (batch.steps if batch.steps is not None else [no_steps] * len(batch))
        ]
        return ScoreBatch(
            ids=[i for batch in batches for i in batch.ids],
            values=_joined([batch.values for batch in batches]),
            components={
                name: _joined(
                    [
                        batch.components.get(name, np.full(len(batch), np.nan, np.float32))
                        for batch in batches
                    ]
                )
                for name in names
            },
            steps=steps if any(batch.steps is not None for batch in batches) else None,
            verdicts=[v for batch in batches for v in batch.verdicts],
            explanations=[e for batch in batches for e in batch.explanations],
            errors=[e for batch in batches for e in batch.errors],
            versions=[v for batch in batches for v in batch.versions],
        )


def _joined(columns: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([np.empty(0, np.float32), *columns])


def batch_of(items: Sequence[ItemScore]) -> ScoreBatch:
    """The items as columns."""
    nan = float("nan")
    names = dict.fromkeys(name for item in items for name in item.components)
    return ScoreBatch(
        ids=[item.id for item in items],
        values=np.array([nan if i.value is None else i.value for i in items], np.float32),
        components={
            name: np.array([item.components.get(name, nan) for item in items], np.float32)
            for name in names
        },
        steps=[item.steps for item in items] if any(len(i.steps) for i in items) else None,
        verdicts=[item.verdict for item in items],
        explanations=[item.explanation for item in items],
        errors=[item.error for item in items],
        versions=[item.version for item in items],
    )
