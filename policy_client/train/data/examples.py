"""`Example`: one row of a data set in standard form, and how a raw row becomes one.

Column names follow what data sets on the hub use; the first name of a row that is present counts:

    prompt      prompt, question, problem, query, instruction
    completion  completion, response, output
    answer      answer, solution, ground_truth, reference_answer, reward_model.ground_truth
    chosen, rejected, margin, messages, metadata as they are

Every other column goes into `Example.metadata`, where a reward function finds it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, overload

from rewardsvc.errors import ConfigError

Text: TypeAlias = "str | list[dict[str, str]]"
"""Plain text, or a conversation: messages with `role` and `content`."""

PROMPT_COLUMNS = ("prompt", "question", "problem", "query", "instruction")
COMPLETION_COLUMNS = ("completion", "response", "output")
ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "reference_answer")


class DataError(ConfigError):
    """A data set is malformed; the message names file, row, column, value and fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row.

    Attributes:
        prompt: Text or messages; empty where the row has none.
        completion: What a policy should learn to write, for SFT.
        answer: The reference answer that a verifier checks against.
        chosen: The better completion of a preference pair, without the prompt.
        rejected: The worse one.
        margin: By how much `chosen` is better, in units of reward.
        metadata: All other columns.
        where: File and row, for messages.
    """

    prompt: Text = ""
    completion: Text | None = None
    answer: str | None = None
    chosen: Text | None = None
    rejected: Text | None = None
    margin: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


class Examples(Sequence[Example]):
    """The rows of one data set, in order.

    Attributes:
        source: Where they came from.
    """

    def __init__(self, rows: Sequence[Example], *, source: str) -> None:
        """Wraps `rows`.

        Raises:
            DataError: If there are none.
        """
        if not rows:
            raise DataError(f"{source}: no rows; a data set needs at least one")
        self._rows = tuple(rows)
        self.source = source

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self._rows[index], source=self.source)
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Example]:
        return iter(self._rows)

    def require(self, *columns: str) -> Examples:
        """These examples, if every one of them has all of `columns`, fields of `Example`.

        An empty completion counts as one; an empty prompt does not.

        Raises:
            DataError: Names the first row that lacks one.
        """
        for row in self._rows:
            for column in columns:
                value = getattr(row, column)
                if value is None or (column == "prompt" and not value):
                    names = _names_of(column)
                    raise DataError(
                        f"{row.where}: column {column!r} is missing; "
                        f"this trainer needs it, under one of the names {', '.join(names)}"
                    )
        return self


def parse_row(row: Mapping[str, Any], where: str) -> Example:
    """One raw row in standard form.

    A `messages` column is a prompt and the assistant's last turn. Preference pairs without a prompt
    column whose two conversations start alike share that start as their prompt.

    Args:
        row: Values by column.
        where: File and row, for messages.

    Raises:
        DataError: If a column has a value of the wrong kind.
    """
    left = {name: value for name, value in row.items() if value is not None}
    prompt = _take_text(left, PROMPT_COLUMNS, where)
    completion = _take_text(left, COMPLETION_COLUMNS, where)
    chosen = _take_text(left, ("chosen",), where)
    rejected = _take_text(left, ("rejected",), where)
    if (chosen is None) != (rejected is None):
        missing = "chosen" if chosen is None else "rejected"
        raise DataError(f"{where}: column {missing!r} is missing; a preference pair has both")
    if "messages" in left and prompt is None and completion is None:
        prompt, completion = _split_messages(left.pop("messages"), where)
    if chosen is not None and rejected is not None and prompt is None:
        prompt, chosen, rejected = _split_shared_prompt(chosen, rejected)
    answer = _take_answer(left, where)
    margin = left.pop("margin", None)
    if margin is not None:
        margin = check_number(margin, "margin", where)
    metadata = left.pop("metadata", {})
    if isinstance(metadata, str):
        metadata = _parse_json(metadata, where)
    if not isinstance(metadata, Mapping):
        raise DataError(f"{where}: column 'metadata': an object is needed, got {metadata!r}")
    return Example(
        prompt="" if prompt is None else prompt,
        completion=completion,
        answer=answer,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        metadata={**left, **metadata},
        where=where,
    )


def read_scored(example: Example) -> tuple[list[Text], list[float]]:
    """The columns `completions` and `scores` of a row that ranks completions of one prompt.

    Returns:
        At least two completions, and a finite score for each; higher is better.

    Raises:
        DataError: If a column is missing or has a value of the wrong kind.
    """
    columns = []
    for column in ("completions", "scores"):
        value = example.metadata.get(column)
        if not isinstance(value, list | tuple):
            raise DataError(f"{example.where}: column {column!r}: a list is needed, got {value!r}")
        columns.append(value)
    if len(columns[0]) != len(columns[1]) or len(columns[0]) < 2:
        raise DataError(
            f"{example.where}: {len(columns[0])} completions and {len(columns[1])} scores; "
            "give at least two, and a score for each"
        )
    texts = [_check_text(text, "completions", example.where) for text in columns[0]]
    return texts, [check_number(score, "scores", example.where) for score in columns[1]]


def check_number(value: Any, column: str, where: str) -> float:
    """The value, if it is a finite number.

    Raises:
        DataError: If it is not.
    """
    if not (_is_number(value) and math.isfinite(value)):
        raise DataError(f"{where}: column {column!r}: a finite number is needed, got {value!r}")
    return float(value)


def _take_text(left: dict[str, Any], names: Sequence[str], where: str) -> Text | None:
    for name in names:
        if name in left:
            return _check_text(left.pop(name), name, where)
    return None


def _check_text(value: Any, name: str, where: str) -> Text:
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise DataError(
            f"{where}: column {name!r}: text or a list of messages is needed, got {value!r}"
        )
    messages = []
    for turn, message in enumerate(value):
        if (
            not isinstance(message, Mapping)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            raise DataError(
                f"{where}: column {name!r}, message {turn}: an object with the texts `role` and "
                f"`content` is needed, got {message!r}"
            )
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def _take_answer(left: dict[str, Any], where: str) -> str | None:
    for name in ANSWER_COLUMNS:
        if name in left:
            return _check_answer(left.pop(name), name, where)
    reward_model = left.get("reward_model")
    if isinstance(reward_model, Mapping) and reward_model.get("ground_truth") is not None:
        return _check_answer(reward_model["ground_truth"], "reward_model.ground_truth", where)
    return None


def _check_answer(value: Any, name: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if _is_number(value):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: column {name!r}: cannot be an answer: {value!r}") from error


def _split_messages(value: Any, where: str) -> tuple[Text, Text]:
    messages = _check_text(value, "messages", where)
    if isinstance(messages, str) or not messages or messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: column 'messages': a list that ends with a turn of the assistant is needed, "
            f"got {value!r}"
        )
    return messages[:-1], messages[-1:]


def _split_shared_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The messages that both conversations start with, and what is left of each.

    The last message always stays: identical answers are still answers.
    """
    if isinstance(chosen, str) or isinstance(rejected, str):
        return "", chosen, rejected
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: column 'metadata': not JSON: {error}; value {text!r}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names_of(column: str) -> tuple[str, ...]:
    table = {
        "prompt": PROMPT_COLUMNS,
        "completion": (*COMPLETION_COLUMNS, "messages"),
        "answer": ANSWER_COLUMNS,
    }
    return table.get(column, (column,))
