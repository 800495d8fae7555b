"""A verifier in this process as a reward function, in the calling convention of TRL.

The other adapters build on it: a `RewardFunction` of the client has the same form.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rewardsvc.policy_client.client.reward_function import (
    ANSWER_COLUMNS,
    AsyncRewardFunction,
    OnError,
    RewardFunction,
    answer_text,
)
from rewardsvc.verifiers.base import Judge
from rewardsvc.verifiers.types import ErrorKind, Verdict

log = logging.getLogger(__name__)

_FROM_THE_CALL = ("completion", "prompt", "completion_ids")


class VerifierReward:
    """Rewards of a verifier, or of a function, whose parameters are found by name.

    `completion` and `prompt` are text, `completion_ids` token ids, `answer` is text from the first
    of the usual answer columns; any other parameter is the column of its name. Picklable if the
    verifier is.

    Attributes:
        __name__: Under which trainers log it.
    """

    def __init__(
        self,
        verifier: Any,
        *,
        name: str | None = None,
        columns: Mapping[str, str] | None = None,
        on_error: OnError = OnError.RAISE,
    ) -> None:
        """Looks at the verifier's parameters.

        Args:
            verifier: Has a `verify`, or is a function that returns a `Verdict`, a number or None.
            name: Under which trainers log it; the verifier's own in snake case if None.
            columns: Parameter → data-set column, where the names differ.
            on_error: Whether an exception of the verifier is raised, or is no reward for that
                sample and a line in the log.

        Raises:
            TypeError: If `verifier` does not judge.
            ValueError: If `columns` names a parameter that it does not have.
        """
        self._judge = Judge.of(verifier)
        self.__name__ = name or self._judge.name
        self._columns = dict(columns or {})
        self._on_error = OnError(on_error)
        unknown = sorted(set(self._columns) - set(self._judge.parameters))
        if unknown:
            raise ValueError(
                f"columns: {self._judge.name} has no parameter {unknown[0]!r}; it has "
                f"{', '.join(self._judge.parameters)}"
            )

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of the completions.

        Args:
            prompts: [N]; text or chat messages.
            completions: [N]; text or chat messages.
            completion_ids: [N] token ids of the completions.
            columns: Lists of N values, as in the data set; anything that is no list is left alone,
                but for TRL's `log_metric`.

        Returns:
            [N]; None where there is no reward.

        Raises:
            ValueError: If a column that is needed is missing or has the wrong length.
        """
        verdicts = self.verdicts(prompts, completions, completion_ids, **columns)
        log_metric = columns.get("log_metric")
        if callable(log_metric) and verdicts:
            num_missing = sum(verdict.reward is None for verdict in verdicts)
            log_metric(f"{self.__name__}/no_reward", num_missing / len(verdicts))
        return [verdict.reward for verdict in verdicts]

    def verdicts(
        self,
        prompts: Sequence[Any] | None,
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Verdict]:
        """The verdicts behind the rewards; see `__call__`."""
        found = self._find(
            len(completions),
            {"prompt": prompts, "completion": completions, "completion_ids": completion_ids},
            columns,
        )
        return [
            self._verdict({name: column[row] for name, column in found.items()})
            for row in range(len(completions))
        ]

    def _find(
        self, num_items: int, call: Mapping[str, Any], columns: Mapping[str, Any]
    ) -> dict[str, Sequence[Any]]:
        """Parameter → column, for every parameter that there is a column for."""
        found: dict[str, Sequence[Any]] = {}
        for name in self._judge.parameters:
            column = call.get(name) if name in _FROM_THE_CALL else self._column(name, columns)
            if column is None:
                if name in self._judge.required or name in self._columns:
                    raise ValueError(
                        f"{self.__name__} needs a column {self._columns.get(name, name)!r}; the "
                        f"data set has {sorted(n for n in columns if _is_column(columns[n]))}"
                    )
                continue
            if len(column) != num_items:
                raise ValueError(
                    f"column {name!r} has {len(column)} entries for {num_items} completions"
                )
            found[name] = [_value(name, value) for value in column]
        return found

    def _column(self, name: str, columns: Mapping[str, Any]) -> Any:
        if name in self._columns:
            names: Sequence[str] = (self._columns[name],)
        else:
            names = ANSWER_COLUMNS if name == "answer" else (name,)
        return next((columns[n] for n in names if n in columns and _is_column(columns[n])), None)

    def _verdict(self, values: Mapping[str, Any]) -> Verdict:
        try:
            return self._judge(values)
        except Exception as error:
            if self._on_error is OnError.RAISE:
                raise
            log.exception("%s raised on a completion, which has no reward", self.__name__)
            return Verdict.failed(ErrorKind.INVALID_SAMPLE, f"{type(error).__name__}: {error}")


RewardFunctionLike: TypeAlias = VerifierReward | RewardFunction
"""What TRL can call: a verifier in this process, or a scorer of the service."""


def as_reward_function(source: Any) -> RewardFunctionLike:
    """`source` as a function of `prompts`, `completions` and columns.

    Args:
        source: A verifier, a function that judges one completion, or a reward function of the
            client, which is returned as it is.

    Raises:
        TypeError: If it is none of these, or is asynchronous.
    """
    if isinstance(source, AsyncRewardFunction):
        raise TypeError(
            f"{source.__name__} is asynchronous; give RewardClient(…).reward_function(…)"
        )
    if isinstance(source, VerifierReward | RewardFunction):
        return source
    return VerifierReward(source)


def text_of(value: Any) -> str:
    """The text of a prompt or completion; messages are joined by newlines, as in the service.

    Raises:
        TypeError: If it is neither text nor a list of chat messages with text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "\n".join(_content(turn) for turn in value)
    raise TypeError(f"a completion is {type(value).__name__}; give text or chat messages")


def _content(turn: Any) -> str:
    if not isinstance(turn, Mapping):
        raise TypeError(
            f"a chat message is {type(turn).__name__}; give a dict with role and content"
        )
    content = turn.get("content")
    if isinstance(content, list | tuple):
        return "".join(part["text"] for part in content if "text" in part)
    return content or ""


def _value(name: str, value: Any) -> Any:
    if name in ("completion", "prompt"):
        return text_of(value)
    if name == "answer":
        return answer_text(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _is_column(value: Any) -> bool:
    return isinstance(value, list | tuple) or hasattr(value, "tolist")
