"""Reply messages to numpy arrays. A reply that contradicts the contract is a `ServerBug`; nothing
is cut, padded or broadcast to make it fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemError, ItemErrorCode
from rewardsvc.policy_client.client.errors import ServerBug
from rewardsvc.policy_client.client.scores import ItemScore
from rewardsvc.v1 import reward_pb2 as pb
from rewardsvc.verdict import Verdict

_E = TypeVar("_E", bound=StrEnum)


def _enum_table(
    members: type[_E], prefix: str, numbers: Sequence[tuple[str, int]]
) -> dict[int, _E]:
    """Protobuf number to member, for the names that both sides know."""
    known = {f"{prefix}_{member.name}": member for member in members}
    return {number: known[name] for name, number in numbers if name in known}


_VERDICTS = _enum_table(Verdict, "VERDICT", pb.Verdict.items())
_ERROR_CODES = _enum_table(ItemErrorCode, "ITEM_ERROR_CODE", pb.ItemErrorCode.items())


def decode_items(batch: pb.ScoreBatch, ids: Sequence[str]) -> list[ItemScore]:
    """The rows of a batch.

    Args:
        batch: What the server sent.
        ids: [N], the ids of the rows that were asked for.

    Raises:
        ServerBug: If a field has the wrong size or contradicts another; names the field.
    """
    num_items = len(ids)
    values = _floats("values", batch.values, num_items)
    details = _details(batch.details, num_items)
    step_rows = _steps(batch, num_items)
    columns: dict[str, list[float]] = {}
    for component in batch.components:
        if component.name in columns:
            raise ServerBug(f"reply: components has {component.name!r} twice")
        name = f"components[{component.name!r}]"
        columns[component.name] = _floats(name, component.values, num_items).tolist()
    items = []
    for row, value in enumerate(values.tolist()):
        detail = details.get(row)
        error = _item_error(detail)
        if math.isinf(value):
            raise ServerBug(f"reply: values[{row}] is {value}; a reward is finite")
        if math.isnan(value) != (error is not None):
            raise ServerBug(
                f"reply: values[{row}] is {value} with error {error}; an item has a finite value "
                "or an error, never both, never neither"
            )
        items.append(
            ItemScore(
                id=ids[row],
                value=None if error else value,
                components={
                    name: column[row]
                    for name, column in columns.items()
                    if not math.isnan(column[row])
                },
                steps=step_rows[row],
                verdict=_VERDICTS.get(detail.verdict) if detail else None,
                explanation=detail.explanation if detail else "",
                error=error,
                version=batch.version,
            )
        )
    return items


def decode_logprobs(
    response: pb.TokenLogProbsResponse, counts: Sequence[int], *, entropy: bool
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], dict[int, ItemError]]:
    """Log-probs and entropies of each sequence, and errors by row.

    Args:
        response: What the server sent.
        counts: [N], completion tokens of each sequence that was asked for.
        entropy: Whether entropies were asked for; if not, their list is empty.

    Raises:
        ServerBug: If a field has the wrong size or contradicts another; names the field.
    """
    total = sum(counts)
    ends = np.cumsum(counts, dtype=np.int64)[:-1]
    logprobs = np.split(_floats("logprobs", response.logprobs, total), ends)
    errors: dict[int, ItemError] = {}
    for row, detail in _details(response.details, len(counts)).items():
        error = _item_error(detail)
        if error is not None:
            errors[row] = error
    for row, values in enumerate(logprobs):
        if row not in errors and np.isnan(values).any():
            raise ServerBug(f"reply: logprobs of sequence {row} hold NaN, and it has no error")
    entropies = np.split(_floats("entropies", response.entropies, total), ends) if entropy else []
    # Views of one buffer would keep all of it alive for a single row.
    return [row.copy() for row in logprobs], [row.copy() for row in entropies], errors


def _floats(name: str, raw: bytes, count: int) -> NDArray[np.float32]:
    """A writable copy of `count` float32 values."""
    if len(raw) != 4 * count:
        raise ServerBug(
            f"reply: {name} has {len(raw)} bytes; {count} float32 values take {4 * count}"
        )
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _steps(batch: pb.ScoreBatch, num_items: int) -> list[NDArray[np.float32]]:
    if not batch.step_counts:
        _floats("steps", batch.steps, 0)
        return [np.empty(0, np.float32) for _ in range(num_items)]
    if len(batch.step_counts) != 4 * num_items:
        raise ServerBug(
            f"reply: step_counts has {len(batch.step_counts)} bytes; {num_items} int32 values "
            f"take {4 * num_items}"
        )
    counts = np.frombuffer(batch.step_counts, "<i4").astype(np.int64)
    if num_items and counts.min() < 0:
        raise ServerBug(f"reply: step_counts holds {counts.min()}; a count is at least 0")
    steps = _floats("steps", batch.steps, int(counts.sum()))
    return [row.copy() for row in np.split(steps, np.cumsum(counts)[:-1])]


def _details(details: Sequence[pb.ItemDetail], num_items: int) -> dict[int, pb.ItemDetail]:
    by_row: dict[int, pb.ItemDetail] = {}
    for detail in details:
        if not 0 <= detail.index < num_items:
            raise ServerBug(f"reply: details has index {detail.index} in a batch of {num_items}")
        if detail.index in by_row:
            raise ServerBug(f"reply: details has index {detail.index} twice")
        by_row[detail.index] = detail
    return by_row


def _item_error(detail: pb.ItemDetail | None) -> ItemError | None:
    """The item's error; a code that this client is too old to know counts as internal."""
    if detail is None or not detail.HasField("error"):
        return None
    error = detail.error
    code = _ERROR_CODES.get(error.code)
    if code is None:
        return ItemError(
            ItemErrorCode.INTERNAL, f"{error.message} (error code {error.code})", error.retryable
        )
    return ItemError(code, error.message, error.retryable)
