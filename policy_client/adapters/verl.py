"""verl's `compute_score`, for one sample or for a batch.

    # my_reward.py
    from rewardsvc.policy_client.adapters.verl import verl_compute_score
    from rewardsvc.verifiers import MathVerifier

    compute_score = verl_compute_score(MathVerifier())

    # on verl's command line
    custom_reward_function.path=my_reward.py custom_reward_function.name=compute_score

`ground_truth` is the answer; a mapping in its place, and `extra_info`, are read as columns. verl
takes a number and cannot leave a sample out, so by default a missing reward raises and ends the
step; see `OnMissing`.

Source: `NaiveRewardManager.run_single` and `BatchRewardManager.verify` of verl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardsvc.policy_client.adapters.local import as_reward_function
from rewardsvc.policy_client.adapters.missing import (
    OnMissing,
    check_on_missing,
    fill_missing,
    rewards_and_reasons,
)

_ANSWER = "answer"
_DATA_SOURCE = "data_source"
_PROMPT_FIELDS = ("prompt", "question")


class VerlScore:
    """Scores as verl wants them; made by the two functions below. Picklable.

    Attributes:
        __name__: Of the source.
    """

    def __init__(self, source: Any, on_missing: OnMissing) -> None:
        self._function = as_reward_function(source)
        self._on_missing = check_on_missing(on_missing)
        self.__name__ = self._function.__name__

    def scores(
        self,
        data_sources: Sequence[str],
        completions: Sequence[str],
        ground_truths: Sequence[Any],
        extra_infos: Sequence[Mapping[str, Any] | None] | None,
    ) -> list[float]:
        """Scores [N] of N completions."""
        extras = [None] * len(completions) if extra_infos is None else list(extra_infos)
        rows = [
            _row(source, truth, extra)
            for source, truth, extra in zip(data_sources, ground_truths, extras, strict=True)
        ]
        prompts = [_prompt(row) for row in rows]
        # A column that some rows lack is None there, which a verifier takes for missing.
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        rewards, reasons = rewards_and_reasons(self._function, prompts, completions, columns)
        return fill_missing(self.__name__, rewards, reasons, self._on_missing)


class _ComputeScore(VerlScore):
    def __call__(
        self,
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_unused: Any,
    ) -> float:
        """The score of one completion."""
        return self.scores([data_source], [solution_str], [ground_truth], [extra_info])[0]


class _ComputeScoreBatch(VerlScore):
    def __call__(
        self,
        data_sources: Sequence[str],
        solution_strs: Sequence[str],
        ground_truths: Sequence[Any],
        extra_infos: Sequence[Mapping[str, Any] | None] | None = None,
        **_unused: Any,
    ) -> list[float]:
        """The scores of a batch, one call to the source."""
        return self.scores(data_sources, list(solution_strs), ground_truths, extra_infos)


def verl_compute_score(source: Any, *, on_missing: OnMissing = "raise") -> _ComputeScore:
    """`compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs)`.

    Args:
        source: A verifier, a function that judges one completion, or a reward function of the
            client.
        on_missing: What takes the place of a missing reward. NaN makes the whole group's advantage
            NaN; a number is a reward like any other.

    Raises:
        TypeError: If `source` gives no rewards.
        ValueError: If `on_missing` is malformed.
    """
    return _ComputeScore(source, on_missing)


def verl_compute_score_batch(source: Any, *, on_missing: OnMissing = "raise") -> _ComputeScoreBatch:
    """The same for verl's batch reward manager, with plural arguments and a list of scores."""
    return _ComputeScoreBatch(source, on_missing)


def _row(data_source: str, ground_truth: Any, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    row = {_DATA_SOURCE: data_source, **(extra or {})}
    if isinstance(ground_truth, Mapping):
        return {**row, **ground_truth}
    return {**row, _ANSWER: ground_truth}


def _prompt(row: Mapping[str, Any]) -> Any:
    found = (row[name] for name in _PROMPT_FIELDS if isinstance(row.get(name), str | list))
    return next(found, "")
