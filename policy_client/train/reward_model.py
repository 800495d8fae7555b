"""Reward models from preferences: a scalar head that orders completions as people did.

A row is a pair (`chosen`, `rejected`) or a ranking (`completions` with their `scores`). Either is
held as completions from best to worst.

Legend: N pairs, R rows, K completions of a row, B sequences of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rewardsvc.policy_client.algorithms.ranking_losses import plackett_luce_loss, thurstone_loss
from rewardsvc.policy_client.algorithms.reward_losses import bradley_terry_loss
from rewardsvc.policy_client.train.data import DataError, Example, Examples, Text
from rewardsvc.policy_client.train.data.examples import read_scored
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair, pad_right, tokenize_whole
from rewardsvc.policy_client.train.launch import join_world
from rewardsvc.policy_client.train.models import load_reward_model, sequence_rewards
from rewardsvc.policy_client.train.offline import (
    BatchSums,
    OfflineConfig,
    OfflineResult,
    OfflineTask,
    Split,
    load_splits,
    run_offline,
)

RewardModelResult: TypeAlias = OfflineResult

logger = logging.getLogger(__name__)


class RewardModelConfig(OfflineConfig):
    """A reward model. `model` may be a policy: it gives the body, the head is new."""

    loss: Literal["bradley_terry", "thurstone", "plackett_luce"] = Field(
        default="bradley_terry",
        description="bradley_terry, thurstone: of pairs, also of all pairs of a ranking. "
        "plackett_luce: of whole rankings; of two completions it is bradley_terry.",
    )
    length_coefficient: float = Field(
        default=0.0,
        ge=0,
        description="Reward that a token of length is believed to be worth to the judges, beside "
        "what the model is to learn.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs believed to be the wrong way round."
    )
    center_rewards_coefficient: float = Field(
        default=0.0, ge=0, description="Pulls rewards towards mean zero; 0.01 is usual."
    )
    add_eos: bool = Field(
        default=False,
        description="End every sequence with EOS; serve the model with `append_eos: true` then.",
    )

    @model_validator(mode="after")
    def _smoothing_has_a_meaning(self) -> RewardModelConfig:
        if self.label_smoothing and self.loss != "bradley_terry":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} with loss {self.loss!r}; only "
                "bradley_terry has it"
            )
        return self


def run_rm(config: RewardModelConfig) -> RewardModelResult:
    """Trains a reward model on the pairs of `config.train_data`; the service's `orm` serves it.

    Logs `loss`, `accuracy`, `margin`, `rewards/chosen`, `rewards/rejected`, `rewards/accuracies`
    and `rewards/margins`, and the same with "eval_" before them on held-out pairs. Two names for
    two of them, since users of TRL know both. A tie counts as wrong.

    Raises:
        ConfigError: If model, tokenizer or data cannot be used; names the field and the fix.
    """
    join_world(config)
    set_seed(config.seed)
    train, held_out = load_splits(config)
    model, tokenizer = load_reward_model(config)
    return run_offline(_RewardTask(config, model, tokenizer, (train, held_out)), config)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """Completions from best to worst, with their prompts; `margin` is that of a pair, or 0."""

    ranked: tuple[TokenizedPair, ...]
    margin: float = 0.0


class _RewardTask(OfflineTask):
    """One row is one pair or ranking, and so is one unit."""

    name = "rm"

    def __init__(
        self,
        config: RewardModelConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Examples, Examples | None],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._config = config
        train, held_out = data
        self._rows: dict[Split, list[_Row]] = {
            "train": _tokenize(train, tokenizer, config),
            "eval": _tokenize(held_out, tokenizer, config) if held_out is not None else [],
        }
        self.lengths: Mapping[Split, Sequence[int]] = {
            split: [sum(len(one.input_ids) for one in row.ranked) for row in rows]
            for split, rows in self._rows.items()
        }
        self.units: Mapping[Split, Sequence[int]] = {
            split: [1] * len(rows) for split, rows in self._rows.items()
        }

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        """See `OfflineTask`."""
        found = [self._rows[split][row] for row in rows]
        batch = pad_right(
            [one for row in found for one in row.ranked],
            pad_token_id=int(self.tokenizer.pad_token_id),
            device=self.model.device,
        )
        rewards_B = sequence_rewards(self.model, batch.input_ids, batch.attention_mask)
        pairs = _Pairs.of(found, device=rewards_B.device)
        # What length explains need not be learned: it is added before the comparison.
        seen_B = rewards_B + self._config.length_coefficient * batch.attention_mask.sum(1)
        return BatchSums(
            loss=self._preference_loss(seen_B, pairs, found) + self._centering(rewards_B, pairs),
            metrics=_order_metrics(rewards_B.detach(), pairs),
        )

    def _preference_loss(self, seen_B: Tensor, pairs: _Pairs, rows: Sequence[_Row]) -> Tensor:
        config = self._config
        if config.loss == "plackett_luce":
            parts = torch.split(seen_B, [len(row.ranked) for row in rows])
            return torch.stack(
                [
                    plackett_luce_loss(_less(row.margin, s_K))
                    for row, s_K in zip(rows, parts, strict=True)
                ]
            ).sum()
        chosen_N, rejected_N = seen_B[pairs.better], seen_B[pairs.worse]
        if config.loss == "thurstone":
            loss_N = thurstone_loss(chosen_N - pairs.margin, rejected_N)
        else:
            loss_N = bradley_terry_loss(
                chosen_N,
                rejected_N,
                margin_N=pairs.margin,
                label_smoothing=config.label_smoothing,
            )
        return (loss_N * pairs.weight).sum()

    def _centering(self, rewards_B: Tensor, pairs: _Pairs) -> Tensor:
        both_N = rewards_B[pairs.better] + rewards_B[pairs.worse]
        return self._config.center_rewards_coefficient * (both_N.square() * pairs.weight).sum()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pairs:
    """All pairs of all rows; those of one row weigh 1 together.

    Attributes:
        better: int64 [N], index of the better completion in the batch.
        worse: int64 [N].
        weight: float32 [N].
        margin: float32 [N].
    """

    better: Tensor
    worse: Tensor
    weight: Tensor
    margin: Tensor

    @classmethod
    def of(cls, rows: Sequence[_Row], *, device: torch.device) -> _Pairs:
        better: list[int] = []
        worse: list[int] = []
        weight: list[float] = []
        margin: list[float] = []
        first = 0
        for row in rows:
            members = range(first, first + len(row.ranked))
            found = list(combinations(members, 2))
            better += [one for one, _ in found]
            worse += [other for _, other in found]
            weight += [1.0 / len(found)] * len(found)
            margin += [row.margin] * len(found)
            first = members.stop
        return cls(
            better=torch.tensor(better, device=device),
            worse=torch.tensor(worse, device=device),
            weight=torch.tensor(weight, device=device),
            margin=torch.tensor(margin, device=device),
        )


def _less(margin: float, score_K: Tensor) -> Tensor:
    """Scores of a ranking with the best one's lowered; only pairs have a margin that is not 0."""
    return torch.cat([score_K[:1] - margin, score_K[1:]]) if margin else score_K


def _order_metrics(rewards_B: Tensor, pairs: _Pairs) -> dict[str, float]:
    """Sums over rows of the means over their pairs."""
    chosen_N, rejected_N = rewards_B[pairs.better], rewards_B[pairs.worse]

    def total(value_N: Tensor) -> float:
        return float((value_N * pairs.weight).sum())

    accuracy, margin = total((chosen_N > rejected_N).float()), total(chosen_N - rejected_N)
    return {
        "accuracy": accuracy,
        "margin": margin,
        "rewards/chosen": total(chosen_N),
        "rewards/rejected": total(rejected_N),
        "rewards/accuracies": accuracy,
        "rewards/margins": margin,
    }


def _tokenize(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, config: RewardModelConfig
) -> list[_Row]:
    """Token ids of all rows. A row of which one side exceeds `max_length` is dropped: cut off, it
    would be judged by what nobody wrote.
    """
    rows = []
    num_short = num_tied = 0
    for example in examples:
        ranked = _ranked(example, examples)
        if len(ranked) < 2:
            num_tied += 1
            continue
        try:
            tokens = [
                tokenize_whole(tokenizer, example.prompt, one, add_eos=config.add_eos)
                for one in ranked
            ]
        except DataError as error:
            raise DataError(f"{example.where}: {error}") from error
        if not all(tokens):
            raise DataError(f"{example.where}: prompt and completion are both empty; drop the row")
        if max(map(len, tokens)) > config.max_length:
            num_short += 1
            continue
        rows.append(
            _Row(
                ranked=tuple(TokenizedPair(input_ids=ids, num_prompt_tokens=0) for ids in tokens),
                margin=(example.margin or 0.0) if len(ranked) == 2 else 0.0,
            )
        )
    if not rows:
        raise DataError(
            f"{examples.source}: of {len(examples)} rows, {num_short} are longer than max_length "
            f"({config.max_length} tokens; raise it) and {num_tied} have no two different scores"
        )
    if num_short or num_tied:
        logger.warning(
            "%s: of %d rows, %d are longer than max_length (%d tokens) and %d have no two "
            "different scores; they are dropped",
            examples.source,
            len(examples),
            num_short,
            config.max_length,
            num_tied,
        )
    return rows


def _ranked(example: Example, examples: Examples) -> list[Text]:
    """Completions from best to worst. Of several with one score only the first counts: a tie says
    nothing that these models could learn.
    """
    if "completions" not in example.metadata or example.chosen is not None:
        Examples([example], source=examples.source).require("chosen", "rejected")
        assert example.chosen is not None  # `require` has seen to it
        assert example.rejected is not None
        return [example.chosen, example.rejected]
    completions, scores = read_scored(example)
    first: dict[float, Text] = {}
    for text, score in zip(completions, scores, strict=True):
        first.setdefault(score, text)
    return [first[score] for score in sorted(first, reverse=True)]
