"""Rows of preference data sets as token ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.train.data import DataError, Example, Examples, Text
from rewardsvc.policy_client.train.data.examples import check_number, read_scored
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair, tokenize_pair
from rewardsvc.policy_client.train.preference.config import PreferenceConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One preference pair.

    Attributes:
        chosen: The better completion with its prompt.
        rejected: The worse one, with the same prompt.
        chosen_win_rate: Probability that it beats the last policy's completion, for SPPO.
        rejected_win_rate: Likewise.
    """

    chosen: TokenizedPair
    rejected: TokenizedPair
    chosen_win_rate: float = 1.0
    rejected_win_rate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRow:
    """One completion that is good or bad, for KTO."""

    completion: TokenizedPair
    desirable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """Completions of one prompt and their rewards, for RRHF."""

    completions: tuple[TokenizedPair, ...]
    rewards: tuple[float, ...]


class RowReader:
    """Makes rows of token ids; drops those that are too long, and says how many."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PreferenceConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config

    def pairs(self, examples: Examples) -> list[PairRow]:
        """Rows with `chosen` and `rejected`.

        Raises:
            DataError: If a row is malformed, or none is short enough.
        """
        return self._read(examples.require("chosen", "rejected"), self._pair)

    def labelled(self, examples: Examples) -> list[LabelledRow]:
        """Rows with `completion` and `label`.

        Raises:
            DataError: As `pairs`.
        """
        return self._read(examples.require("completion"), self._labelled)

    def ranked(self, examples: Examples) -> list[RankedRow]:
        """Rows with `completions` and `scores`.

        Raises:
            DataError: As `pairs`.
        """
        return self._read(examples, self._ranked)

    def _pair(self, example: Example) -> PairRow | None:
        assert example.chosen is not None  # `require` has seen to it
        assert example.rejected is not None
        tokens = self._tokenize(example, (example.chosen, example.rejected))
        if tokens is None:
            return None
        return PairRow(
            chosen=tokens[0],
            rejected=tokens[1],
            chosen_win_rate=_probability(example, "chosen_win_rate", 1.0),
            rejected_win_rate=_probability(example, "rejected_win_rate", 0.0),
        )

    def _labelled(self, example: Example) -> LabelledRow | None:
        assert example.completion is not None  # `require` has seen to it
        label = example.metadata.get("label")
        if label not in (True, False):  # 0 and 1 are equal to them
            raise DataError(
                f"{example.where}: column 'label': true or false is needed, got {label!r}"
            )
        tokens = self._tokenize(example, (example.completion,))
        if tokens is None:
            return None
        return LabelledRow(completion=tokens[0], desirable=bool(label))

    def _ranked(self, example: Example) -> RankedRow | None:
        completions, rewards = read_scored(example)
        tokens = self._tokenize(example, completions)
        if tokens is None:
            return None
        return RankedRow(completions=tokens, rewards=tuple(rewards))

    def _tokenize(
        self, example: Example, completions: Sequence[Text]
    ) -> tuple[TokenizedPair, ...] | None:
        """None if one of them is too long: cut off, it would be judged by what nobody wrote."""
        found = []
        for completion in completions:
            try:
                pair = tokenize_pair(
                    self._tokenizer, example.prompt, completion, add_eos=self._config.add_eos
                )
            except DataError as error:
                raise DataError(f"{example.where}: {error}") from error
            if pair.num_prompt_tokens == 0:  # nothing predicts a sequence's first token
                pair = TokenizedPair(input_ids=pair.input_ids, num_prompt_tokens=1)
            if len(pair.input_ids) <= pair.num_prompt_tokens:
                raise DataError(
                    f"{example.where}: a completion is empty; drop the row, or set add_eos: true"
                )
            found.append(pair)
        longest = max(len(pair.input_ids) for pair in found)
        return tuple(found) if longest <= self._config.max_length else None

    def _read(self, examples: Examples, read: Callable[[Example], T | None]) -> list[T]:
        rows = [row for row in map(read, examples) if row is not None]
        if not rows:
            raise DataError(
                f"max_length: every one of the {len(examples)} rows of {examples.source} is longer "
                f"than {self._config.max_length} tokens; raise it"
            )
        if len(rows) < len(examples):
            logger.warning(
                "max_length: %d of %d rows of %s are longer than %d tokens and dropped",
                len(examples) - len(rows),
                len(examples),
                examples.source,
                self._config.max_length,
            )
        return rows


def num_tokens(rows: Iterable[TokenizedPair]) -> int:
    """Tokens of prompts and completions."""
    return sum(len(row.input_ids) for row in rows)


def _probability(example: Example, column: str, default: float) -> float:
    value = check_number(example.metadata.get(column, default), column, example.where)
    if not 0.0 <= value <= 1.0:
        raise DataError(
            f"{example.where}: column {column!r}: a probability is needed, got {value!r}"
        )
    return value
