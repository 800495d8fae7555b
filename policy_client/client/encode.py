"""Python values to request messages.

A value of the wrong type is a mistake in the program and raises. A sample of the right type that
cannot be sent (text that is no Unicode, a token id out of range, no completion at all, as when
generation was aborted) becomes an item error, and its neighbours are scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemError, ItemErrorCode, ItemFailure
from rewardsvc.policy_client.client.types import ScoreItem, TextLike
from rewardsvc.v1 import reward_pb2 as pb

_MAX_ID_BYTES = 256
_INT32 = np.iinfo(np.int32)


def build_items(
    prompts: Sequence[TextLike],
    completions: Sequence[TextLike],
    columns: Mapping[str, Sequence[Any] | None],
) -> list[ScoreItem]:
    """One item a row.

    Args:
        prompts: [N].
        completions: [N].
        columns: Optional columns by the name of their `score` argument: `answers`, `tests`,
            `rubrics`, `metadata`, `ids`; None for an absent one.

    Raises:
        TypeError: If a column is one text in place of a sequence.
        ValueError: If a column has another length than `completions`; names both.
    """
    num_items = _length("completions", completions)
    fields = {"answers": "answer", "rubrics": "rubric", "ids": "id"}
    present: dict[str, Sequence[Any]] = {"prompts": prompts}
    present.update({name: column for name, column in columns.items() if column is not None})
    for name, column in present.items():
        if _length(name, column) != num_items:
            raise ValueError(
                f"{name} has {len(column)} entries and completions has {num_items}; "
                "they must be of equal length, with None where a sample has no value"
            )
    del present["prompts"]
    return [
        ScoreItem(
            prompt=prompts[row],
            completion=completions[row],
            **{fields.get(name, name): column[row] for name, column in present.items()},
        )
        for row in range(num_items)
    ]


def encode_samples(
    items: Sequence[ScoreItem],
) -> tuple[list[pb.Sample], dict[int, ItemError]]:
    """Messages of the items, in order, and the errors of those that cannot be sent, by position.

    An item that cannot be sent has an empty message.

    Raises:
        TypeError: If a field has the wrong type; names the field and the position.
        ValueError: If an id is too long.
    """
    samples, errors = [], {}
    for position, item in enumerate(items):
        try:
            samples.append(encode_sample(item))
        except ItemFailure as failure:
            samples.append(pb.Sample())
            errors[position] = failure.error
        except (TypeError, ValueError) as error:
            raise type(error)(f"sample {position}: {error}") from None
    return samples, errors


def encode_sample(item: ScoreItem) -> pb.Sample:
    """The item's message.

    Raises:
        ItemFailure: If the item cannot be sent.
        TypeError: If a field has the wrong type.
        ValueError: If the id is too long.
    """
    sample = pb.Sample()
    if item.id:
        sample.id = _text("id", item.id)
        if len(item.id.encode()) > _MAX_ID_BYTES:
            raise ValueError(
                f"id has {len(item.id.encode())} bytes; at most {_MAX_ID_BYTES} are allowed"
            )
    _set_text(sample, "prompt", item.prompt)
    _set_text(sample, "completion", item.completion)
    if item.answer is not None:
        sample.answer = _text("answer", item.answer)
    if item.tests is not None:
        tests = item.tests if isinstance(item.tests, str) else _json("tests", item.tests)
        sample.tests_json = _text("tests", tests)
    if item.rubric is not None:
        sample.rubric = _text("rubric", item.rubric)
    if item.metadata:
        if not isinstance(item.metadata, Mapping):
            raise TypeError(f"metadata is {type(item.metadata).__name__}; it must be a dict")
        sample.metadata_json = _json("metadata", dict(item.metadata))
    return sample


def encode_sequences(
    prompt_ids: Sequence[Any], completion_ids: Sequence[Any]
) -> tuple[list[pb.TokenSequence], list[int], dict[int, ItemError]]:
    """Messages of token sequences.

    Returns:
        Messages, in order; the number of completion tokens of each; and the errors of those that
        cannot be sent, by position.

    Raises:
        TypeError: If ids are not integers.
        ValueError: If the two have different lengths.
    """
    num_sequences = _length("completion_ids", completion_ids)
    if _length("prompt_ids", prompt_ids) != num_sequences:
        raise ValueError(
            f"prompt_ids has {len(prompt_ids)} entries and completion_ids has {num_sequences}; "
            "they must be of equal length"
        )
    sequences: list[pb.TokenSequence] = []
    counts: list[int] = []
    errors: dict[int, ItemError] = {}
    pairs = zip(prompt_ids, completion_ids, strict=True)
    for position, (prompt, completion) in enumerate(pairs):
        count = 0
        try:
            completion_array = _id_array("completion_ids", completion)
            count = len(completion_array)
            prompt_bytes = _id_bytes("prompt_ids", _id_array("prompt_ids", prompt))
            if not prompt_bytes:
                raise ItemFailure(
                    ItemErrorCode.INVALID_SAMPLE,
                    "prompt_ids is empty; the first completion token needs a context",
                )
            message = pb.TokenSequence(
                prompt_ids=prompt_bytes,
                completion_ids=_id_bytes("completion_ids", completion_array),
            )
        except ItemFailure as failure:
            message, errors[position] = pb.TokenSequence(), failure.error
        except TypeError as error:
            raise TypeError(f"sequence {position}: {error}") from None
        sequences.append(message)
        counts.append(count)
    return sequences, counts, errors


def _length(name: str, column: Any) -> int:
    if isinstance(column, str | bytes | Mapping) or not hasattr(column, "__len__"):
        raise TypeError(
            f"{name} is {type(column).__name__}; it must be a sequence with one entry a sample"
        )
    return len(column)


def _invalid(message: str) -> ItemFailure:
    return ItemFailure(ItemErrorCode.INVALID_SAMPLE, message)


def _text(name: str, value: Any) -> str:
    """`value` if it is text that UTF-8 can carry: a lone surrogate is what it cannot."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}; it must be str")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _invalid(
                f"{name} has {value[error.start]!r} at character {error.start}, which is not "
                "valid Unicode text; decode with errors='replace'"
            ) from None
    return value


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name} holds what JSON cannot say: {error}") from None


def _set_text(sample: pb.Sample, name: str, value: Any) -> None:
    if isinstance(value, str):
        setattr(sample, f"{name}_text", _text(name, value))
    elif value is None:
        raise _invalid(f"{name} is None; there is nothing to score")
    elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        messages = getattr(sample, f"{name}_messages").messages
        messages.extend(_messages(name, value))
    elif isinstance(value, Iterable) or hasattr(value, "tolist"):
        getattr(sample, f"{name}_ids").ids = _id_bytes(name, _id_array(name, value))
    else:
        raise TypeError(
            f"{name} is {type(value).__name__}; it must be str, a list of chat messages, "
            "or token ids"
        )


def _messages(name: str, turns: Sequence[Any]) -> list[pb.Message]:
    messages = []
    for index, turn in enumerate(turns):
        where = f"{name}[{index}]"
        if not isinstance(turn, Mapping):
            raise TypeError(
                f"{where} is {type(turn).__name__}; a chat message is a dict with role and content"
            )
        missing = [key for key in ("role", "content") if key not in turn]
        if missing:
            raise TypeError(f"{where} has no {missing[0]!r}; its keys are {sorted(turn)}")
        messages.append(
            pb.Message(
                role=_text(f"{where}.role", turn["role"]),
                content=_text(f"{where}.content", _content(where, turn["content"])),
            )
        )
    return messages


def _content(where: str, content: Any) -> Any:
    """The text of a message; its text parts one after another where it is a list of parts."""
    if content is None:
        return ""
    if not isinstance(content, list | tuple):
        return content
    texts = []
    for part in content:
        if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
            raise _invalid(f"{where}.content has a part that is not text: only text is scored")
        texts.append(part["text"])
    return "".join(texts)


def _id_array(name: str, value: Any) -> NDArray[Any]:
    if isinstance(value, str | bytes | Mapping):
        raise TypeError(f"{name} is {type(value).__name__}; it must be token ids")
    listed = value if isinstance(value, np.ndarray) else _listed(value)
    try:
        array = np.asarray(listed)
    except (ValueError, OverflowError):
        raise TypeError(f"{name} is nested unevenly; it must be a flat list of token ids") from None
    if array.ndim != 1:
        raise TypeError(f"{name} has {array.ndim} dimensions; one sample's token ids have one")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} holds {array.dtype} values; token ids are integers")
    return array


def _listed(value: Any) -> list[Any]:
    return list(value.tolist()) if hasattr(value, "tolist") else list(value)


def _id_bytes(name: str, array: NDArray[Any]) -> bytes:
    if array.size and not (array.min() >= 0 and array.max() <= _INT32.max):
        worst = array.min() if array.min() < 0 else array.max()
        raise _invalid(f"{name} holds {worst}; a token id is at least 0 and fits into 31 bits")
    return array.astype("<i4").tobytes()
