"""A scorer as a reward function: a callable that trainers take.

The calling convention is TRL's, which others follow: keyword arguments `prompts`, `completions` and
`completion_ids`, one list for each further column of the data set, and a few things that are not
columns (`trainer_state`, `log_extra`, `log_metric`, `environments`). One reward a completion comes
back, None where there is none, which the trainer masks.

Source: `GRPOTrainer._calculate_rewards` of TRL 1.16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardsvc.policy_client.client.errors import RewardClientError
from rewardsvc.policy_client.client.scores import ScoreBatch
from rewardsvc.policy_client.client.types import TextLike

if TYPE_CHECKING:
    from rewardsvc.policy_client.client.aio import AsyncRewardClient
    from rewardsvc.policy_client.client.sync import RewardClient

ANSWER_COLUMNS = ("answer", "answers", "solution", "ground_truth", "target")

_COLUMN_ARGUMENTS = {"tests": "tests", "rubric": "rubrics"}


class OnError(StrEnum):
    """What a reward function does if the call as a whole fails."""

    RAISE = "raise"
    # No reward for any of the completions: the trainer masks them.
    MASK = "mask"


class _RewardFunctionBase:
    """What both forms share: names, columns and results."""

    def __init__(
        self,
        client: RewardClient | AsyncRewardClient,
        scorer: str,
        *,
        answer_column: str | Sequence[str] | None = None,
        name: str | None = None,
        on_error: OnError = OnError.RAISE,
        arguments: Mapping[str, Any],
    ) -> None:
        """Made by a client's `reward_function`; owns `client`."""
        self._client = client
        self.scorer = scorer
        self.__name__ = name or scorer
        self._on_error = OnError(on_error)
        self._arguments = dict(arguments)
        self._answer_columns: tuple[str, ...]
        if answer_column is None:
            self._answer_columns = ANSWER_COLUMNS
        elif isinstance(answer_column, str):
            self._answer_columns = (answer_column,)
        else:
            self._answer_columns = tuple(answer_column)
        # A column that was named must be there; the usual names are only tried.
        self._answer_required = answer_column is not None

    def _score_arguments(self, num_items: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of `score` for the columns of a data set."""
        present = {
            name: column
            for name, column in columns.items()
            if isinstance(column, list | tuple) or hasattr(column, "tolist")
        }
        for name, column in present.items():
            if len(column) != num_items:
                raise ValueError(
                    f"column {name!r} has {len(column)} entries for {num_items} completions"
                )
        arguments = dict(self._arguments)
        found = next((name for name in self._answer_columns if name in present), None)
        if found is not None:
            arguments["answers"] = [answer_text(value) for value in present.pop(found)]
        elif self._answer_required:
            raise ValueError(
                f"answer_column: none of {list(self._answer_columns)} is in the data set, whose "
                f"columns are {sorted(present)}"
            )
        for name, argument in _COLUMN_ARGUMENTS.items():
            if name in present:
                arguments[argument] = present.pop(name)
        shared = {name: list(column) for name, column in present.items() if _is_json(column)}
        if shared:
            arguments["metadata"] = [
                {name: column[row] for name, column in shared.items()} for row in range(num_items)
            ]
        return arguments

    def _rewards(self, batch: ScoreBatch, columns: Mapping[str, Any]) -> list[float | None]:
        log_metric = columns.get("log_metric")
        if callable(log_metric) and len(batch):
            self._log(batch, log_metric)
        return [None if np.isnan(value) else value for value in batch.values.tolist()]

    def _log(self, batch: ScoreBatch, log_metric: Callable[[str, float], None]) -> None:
        log_metric(f"{self.__name__}/no_reward", float(1.0 - batch.mask.mean()))
        for name, column in batch.components.items():
            values = column[~np.isnan(column)]
            if len(values):
                log_metric(f"{self.__name__}/{name}", float(values.mean()))


class RewardFunction(_RewardFunctionBase):
    """A scorer as a function. Picklable: a copy in another process connects anew.

    Attributes:
        scorer: The scorer's name.
        __name__: Under which trainers log it.
    """

    _client: RewardClient

    def __call__(
        self,
        prompts: Sequence[TextLike],
        completions: Sequence[TextLike],
        completion_ids: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of the completions.

        Args:
            prompts: [N]; text or chat messages.
            completions: [N]; text or chat messages.
            completion_ids: [N] token ids of the completions. Accepted and not used: the text is
                scored, because a reward model rarely shares the policy's tokenizer.
            columns: Lists of N values, as in the data set. The answer column, `tests` and
                `rubric` go to the fields of that name; other columns whose values JSON can say go
                to the metadata; anything else is left out.

        Returns:
            [N]; None where there is no reward.

        Raises:
            RewardClientError: If the call as a whole failed, unless errors are masked.
            ValueError: If a column has the wrong length.
        """
        arguments = self._score_arguments(len(completions), columns)
        try:
            batch = self._client.score(self.scorer, prompts, completions, **arguments)
        except RewardClientError:
            if self._on_error is OnError.RAISE:
                raise
            return [None] * len(completions)
        return self._rewards(batch, columns)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class AsyncRewardFunction(_RewardFunctionBase):
    """The same as a coroutine function, which TRL gathers with the others.

    Attributes:
        scorer: The scorer's name.
        __name__: Under which trainers log it.
    """

    _client: AsyncRewardClient

    async def __call__(
        self,
        prompts: Sequence[TextLike],
        completions: Sequence[TextLike],
        completion_ids: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of the completions; see `RewardFunction.__call__`."""
        arguments = self._score_arguments(len(completions), columns)
        try:
            batch = await self._client.score(self.scorer, prompts, completions, **arguments)
        except RewardClientError:
            if self._on_error is OnError.RAISE:
                raise
            return [None] * len(completions)
        return self._rewards(batch, columns)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


def answer_text(value: Any) -> str | None:
    """A reference answer as text: data sets hold numbers and lists of answers too."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(value.tolist() if hasattr(value, "tolist") else value, ensure_ascii=False)


def _is_json(column: Any) -> bool:
    try:
        json.dumps(list(column), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
