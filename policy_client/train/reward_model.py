"""Reward models from preference pairs: Bradley-Terry on a scalar head.

Legend: N pairs, B = 2N sequences, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rewardsvc.policy_client.algorithms.reward_losses import bradley_terry_loss
from rewardsvc.policy_client.train.data import DataError, Examples
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair, pad_right, tokenize_whole
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
    """A Bradley-Terry reward model. `model` may be a policy: it gives the body, the head is new."""

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


def run_rm(config: RewardModelConfig) -> RewardModelResult:
    """Trains a reward model on the pairs of `config.train_data`; the service's `orm` serves it.

    Logs `loss`, `accuracy`, `margin`, `rewards/chosen`, `rewards/rejected`, `rewards/accuracies`
    and `rewards/margins`, and the same with "eval_" before them on held-out pairs. Two names for
    two of them, since users of TRL know both. A tie counts as wrong.

    Raises:
        ConfigError: If model, tokenizer or data cannot be used; names the field and the fix.
    """
    set_seed(config.seed)
    train, held_out = load_splits(config)
    model, tokenizer = load_reward_model(config)
    return run_offline(_RewardTask(config, model, tokenizer, (train, held_out)), config)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    chosen: TokenizedPair
    rejected: TokenizedPair
    margin: float


class _RewardTask(OfflineTask):
    """One row is one pair, and so is one unit."""

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
        self._pairs: dict[Split, list[_Pair]] = {
            "train": _tokenize(train, tokenizer, config),
            "eval": _tokenize(held_out, tokenizer, config) if held_out is not None else [],
        }
        self.lengths: Mapping[Split, Sequence[int]] = {
            split: [len(pair.chosen.input_ids) + len(pair.rejected.input_ids) for pair in pairs]
            for split, pairs in self._pairs.items()
        }
        self.units: Mapping[Split, Sequence[int]] = {
            split: [1] * len(pairs) for split, pairs in self._pairs.items()
        }

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        pairs = [self._pairs[split][row] for row in rows]
        batch = pad_right(
            [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs],
            pad_token_id=int(self.tokenizer.pad_token_id),
            device=self.model.device,
        )
        rewards_B = sequence_rewards(self.model, batch.input_ids, batch.attention_mask)
        chosen_N, rejected_N = rewards_B.chunk(2)
        loss_N = bradley_terry_loss(
            chosen_N,
            rejected_N,
            margin_N=torch.tensor([pair.margin for pair in pairs], device=rewards_B.device),
            label_smoothing=self._config.label_smoothing,
            center_coefficient=self._config.center_rewards_coefficient,
        )
        chosen_N, rejected_N = chosen_N.detach(), rejected_N.detach()
        num_right = float((chosen_N > rejected_N).sum())
        margin = float((chosen_N - rejected_N).sum())
        return BatchSums(
            loss=loss_N.sum(),
            metrics={
                "accuracy": num_right,
                "margin": margin,
                "rewards/chosen": float(chosen_N.sum()),
                "rewards/rejected": float(rejected_N.sum()),
                "rewards/accuracies": num_right,
                "rewards/margins": margin,
            },
        )


def _tokenize(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, config: RewardModelConfig
) -> list[_Pair]:
    """Token ids of all pairs. A pair of which one side exceeds `max_length` is dropped: cut off, it
    would be judged by what nobody wrote.
    """
    kept = []
    for example in examples.require("chosen", "rejected"):
        assert example.chosen is not None  # `require` has seen to it
        assert example.rejected is not None
        try:
            chosen, rejected = (
                tokenize_whole(tokenizer, example.prompt, side, add_eos=config.add_eos)
                for side in (example.chosen, example.rejected)
            )
        except DataError as error:
            raise DataError(f"{example.where}: {error}") from error
        if not (chosen and rejected):
            raise DataError(f"{example.where}: prompt and completion are both empty; drop the row")
        if max(len(chosen), len(rejected)) <= config.max_length:
            kept.append(
                _Pair(
                    chosen=TokenizedPair(input_ids=chosen, num_prompt_tokens=0),
                    rejected=TokenizedPair(input_ids=rejected, num_prompt_tokens=0),
                    margin=example.margin or 0.0,
                )
            )
    if not kept:
        raise DataError(
            f"max_length: every one of the {len(examples)} pairs of {examples.source} is longer "
            f"than {config.max_length} tokens; raise it"
        )
    if len(kept) < len(examples):
        logger.warning(
            "max_length: %d of %d pairs of %s are longer than %d tokens and dropped",
            len(examples) - len(kept),
            len(examples),
            examples.source,
            config.max_length,
        )
    return kept
