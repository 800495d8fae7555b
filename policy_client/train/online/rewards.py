"""Where rewards come from: a service, a local verifier, or a function. One interface over all.

No reward is NaN, whatever the reason: an error of the scorer, a function's None, a value that is
not finite. It is never 0, which would be a reward.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rewardsvc.policy_client.client.errors import (
    Cancelled,
    DeadlineExceeded,
    Overloaded,
    ServiceUnavailable,
)
from rewardsvc.policy_client.train.data.examples import Example
from rewardsvc.policy_client.train.online.outage import UnavailableError
from rewardsvc.verifiers.types import Verdict

AWAY = (ServiceUnavailable, Overloaded, DeadlineExceeded, Cancelled, ConnectionError, TimeoutError)
"""Exceptions that say nothing of the request: asking again later may succeed."""

RewardFunction = Callable[..., Sequence[float | Sequence[float] | None]]
"""Called with keywords `prompts`, `completions`, `completion_ids` and one list per data column."""


class MalformedRewardsError(ValueError):
    """A reward source broke its contract, for instance with a list of the wrong length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRequest:
    """N completions to reward.

    Attributes:
        examples: The row of the data set that each completion answers.
        completions: Their text, special tokens removed.
        completion_ids: Their token ids.
    """

    examples: Sequence[Example]
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.completions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rewards:
    """N rewards.

    Attributes:
        values: float32 [N]; NaN where there is no reward.
        components: float32 [N] each, the named parts; NaN where there is none.
        steps: [N] process rewards, one number for each step; None for a completion without, and
            for the whole if the source has none.
    """

    values: NDArray[np.float32]
    components: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    steps: Sequence[Sequence[float] | None] | None = None

    def component(self, name: str) -> NDArray[np.float32]:
        """float32 [N]: the component `name`, itself or nested ("outer/name"); NaN if none."""
        for full_name, column in self.components.items():
            if full_name == name or full_name.endswith(f"/{name}"):
                return column
        return np.full(len(self.values), np.nan, np.float32)

    def select(self, rows: Sequence[int]) -> Rewards:
        """Those of some completions."""
        index = np.array(list(rows), np.int64)
        return Rewards(
            values=self.values[index],
            components={name: column[index] for name, column in self.components.items()},
            steps=None if self.steps is None else [self.steps[row] for row in rows],
        )

    def without(self, gone: NDArray[np.bool_]) -> Rewards:
        """The same with nothing where `gone` is True: bool [N]."""
        nothing = np.float32(np.nan)
        return Rewards(
            values=np.where(gone, nothing, self.values),
            components={
                name: np.where(gone, nothing, column) for name, column in self.components.items()
            },
            steps=None
            if self.steps is None
            else [None if out else row for row, out in zip(self.steps, gone, strict=True)],
        )


def concat_rewards(parts: Sequence[Rewards]) -> Rewards:
    """All rewards, in order; a component that only some parts have is NaN for the others."""
    names = dict.fromkeys(name for part in parts for name in part.components)

    def column(name: str) -> list[NDArray[np.float32]]:
        nothing = [np.full(len(part.values), np.nan, np.float32) for part in parts]
        return [part.components.get(name, none) for part, none in zip(parts, nothing, strict=True)]

    steps = None
    if any(part.steps is not None for part in parts):
        steps = [row for part in parts for row in part.steps or [None] * len(part.values)]
    return Rewards(
        values=np.concatenate([part.values for part in parts]),
        components={name: np.concatenate(column(name)) for name in names},
        steps=steps,
    )


class RewardSource(Protocol):
    """Gives rewards. Called from several threads at once."""

    def score(self, request: RewardRequest) -> Rewards:
        """The rewards of `request`, in its order.

        Raises:
            UnavailableError: If there is no answer now but may be one later; the trainer waits.
        """
        ...


class ScoringClient(Protocol):
    """What a `RewardClient` can do, as far as it is needed here."""

    def score(
        self,
        scorer: str,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        answers: Sequence[str | None] | None = None,
        tests: Sequence[Any] | None = None,
        rubrics: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Any:
        """A batch with `values` and `components`, arrays of one float per completion."""
        ...


class ServiceReward:
    """Rewards of one scorer behind a client."""

    def __init__(self, client: ScoringClient, scorer: str) -> None:
        """Takes a `RewardClient`, or anything with its `score`.

        Args:
            client: Its deadline and retries are its own; what it gives up on, the trainer waits
                out.
            scorer: The scorer's name in the service.
        """
        self._client = client
        self._scorer = scorer

    def score(self, request: RewardRequest) -> Rewards:
        """See `RewardSource.score`."""
        try:
            batch = self._client.score(
                self._scorer,
                [example.prompt for example in request.examples],
                list(request.completions),
                answers=[example.answer for example in request.examples],
                **_service_columns(request),
            )
        except AWAY as error:
            raise UnavailableError(str(error)) from error
        rewards = checked(batch.values, batch.components, len(request), f"scorer {self._scorer!r}")
        steps = getattr(batch, "steps", None)
        if steps is None:
            return rewards
        rows = [[float(step) for step in row] if len(row) else None for row in steps]
        return dataclasses.replace(rewards, steps=rows)


class VerifierReward:
    """Rewards of a verifier in this process."""

    def __init__(self, verify: Callable[[str, Example], Verdict], *, name: str) -> None:
        """Takes a function from completion and example to verdict.

        Args:
            verify: Total: it has a verdict for every text.
            name: Of the verifier, in metrics.
        """
        self._verify = verify
        self._name = name

    def score(self, request: RewardRequest) -> Rewards:
        """See `RewardSource.score`."""
        values = [
            self._verify(completion, example).reward
            for completion, example in zip(request.completions, request.examples, strict=True)
        ]
        numbers = _numbers(values)
        return checked(numbers, {self._name: numbers}, len(request), f"verifier {self._name!r}")


class CallableReward:
    """Rewards of Python functions, called as TRL calls them.

    A function gets lists by keyword: `prompts`, `completions`, `completion_ids`, `answer`, and
    every other column of the data set by its name; a function without `**kwargs` gets those that it
    names. With prompts of messages, completions are messages too. It returns one number per
    completion; None where it does not apply. The reward is the weighted sum of those that apply,
    and there is none where none does.

    A function may return a list of numbers for a completion: process rewards, one for each step.
    Their mean is then the function's reward. Only one function may.
    """

    def __init__(self, *functions: RewardFunction, weights: Sequence[float] | None = None) -> None:
        """Takes the functions.

        Raises:
            ValueError: If there are none, or not as many weights as functions.
        """
        if not functions:
            raise ValueError("functions is empty; give at least one reward function")
        if weights is not None and len(weights) != len(functions):
            raise ValueError(f"weights has {len(weights)} entries for {len(functions)} functions")
        self._functions = functions
        self._weights = [1.0] * len(functions) if weights is None else list(weights)

    def score(self, request: RewardRequest) -> Rewards:
        """See `RewardSource.score`."""
        columns = _columns(request)
        total = np.zeros(len(request), np.float32)
        applies = np.zeros(len(request), np.bool_)
        components: dict[str, NDArray[np.float32]] = {}
        steps: list[Sequence[float] | None] | None = None
        for function, weight in zip(self._functions, self._weights, strict=True):
            name = getattr(function, "__name__", type(function).__name__)
            given = function(**_accepted(function, columns))
            if any(isinstance(value, Sequence) for value in given):
                if steps is not None:
                    raise MalformedRewardsError(
                        f"reward function {name!r} gave steps, and so did another; merge them"
                    )
                steps = [value if isinstance(value, Sequence) else None for value in given]
            values = [_mean(one) if isinstance(one, Sequence) else one for one in given]
            part = checked(_numbers(values), {}, len(request), f"reward function {name!r}").values
            components[name] = part
            applies |= ~np.isnan(part)
            total += weight * np.nan_to_num(part, nan=0.0)
        return Rewards(
            values=np.where(applies, total, np.float32(np.nan)), components=components, steps=steps
        )


class MergedReward:
    """The reward of one source, with the process rewards of another."""

    def __init__(self, outcome: RewardSource, process: RewardSource) -> None:
        """Takes the two: `outcome` gives the values, `process` the steps."""
        self._outcome = outcome
        self._process = process

    def score(self, request: RewardRequest) -> Rewards:
        """See `RewardSource.score`."""
        outcome, process = self._outcome.score(request), self._process.score(request)
        return Rewards(
            values=outcome.values,
            components={**process.components, **outcome.components, "process": process.values},
            steps=process.steps,
        )


def checked(
    values: NDArray[np.float32], components: Mapping[str, NDArray[np.float32]], num: int, who: str
) -> Rewards:
    """`values` as float32, with NaN for whatever is not finite.

    Raises:
        MalformedRewardsError: If an array has not exactly `num` entries: a list of another length,
            broadcast, would give completions the rewards of others.
    """
    arrays = {"": values, **components}
    for name, array in arrays.items():
        array = np.asarray(array, np.float32)
        if array.shape != (num,):
            what = f"component {name!r} of {who}" if name else who
            raise MalformedRewardsError(
                f"{what} gave rewards of shape {array.shape} for {num} completions; "
                "it must give exactly one number, or None, for each"
            )
        arrays[name] = np.where(np.isfinite(array), array, np.float32(np.nan))
    return Rewards(values=arrays.pop(""), components=arrays)


def _mean(steps: Sequence[float]) -> float | None:
    return sum(steps) / len(steps) if steps else None


def _numbers(values: Sequence[float | None]) -> NDArray[np.float32]:
    return np.array([math.nan if value is None else float(value) for value in values], np.float32)


def _service_columns(request: RewardRequest) -> dict[str, list[Any]]:
    """Data columns that the service has fields for, and all others as metadata; no empty ones.

    Metadata tells the completion's length in tokens, which a scorer cannot see in text.
    """
    examples = request.examples
    fields = {"tests": "tests", "rubric": "rubrics"}
    columns: dict[str, list[Any]] = {
        keyword: [example.metadata.get(name) for example in examples]
        for name, keyword in fields.items()
    }
    columns["metadata"] = [
        {name: value for name, value in example.metadata.items() if name not in fields}
        | {"completion_length": len(ids)}
        for example, ids in zip(examples, request.completion_ids, strict=True)
    ]
    return {keyword: column for keyword, column in columns.items() if any(column)}


def _columns(request: RewardRequest) -> dict[str, list[Any]]:
    """The keyword arguments of a reward function."""
    examples = request.examples
    metadata = dict.fromkeys(name for example in examples for name in example.metadata)
    return {
        **{name: [example.metadata.get(name) for example in examples] for name in metadata},
        "answer": [example.answer for example in examples],
        "prompts": [example.prompt for example in examples],
        "completions": [
            text if isinstance(example.prompt, str) else [{"role": "assistant", "content": text}]
            for text, example in zip(request.completions, examples, strict=True)
        ],
        "completion_ids": [list(ids) for ids in request.completion_ids],
    }


def _accepted(function: RewardFunction, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return columns
    return {p.name: columns[p.name] for p in parameters if p.name in columns}
