"""Supervised fine-tuning: maximum likelihood of the completions, and of nothing else.

Legend: B rows, T tokens, K kept positions, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.data import DataError, Examples
from rewardsvc.policy_client.train.data.tokenize import (
    PackedBatch,
    PaddedBatch,
    TokenizedPair,
    pack,
    pad_right,
    tokenize_pair,
)
from rewardsvc.policy_client.train.launch import join_world
from rewardsvc.policy_client.train.models import load_policy
from rewardsvc.policy_client.train.offline import (
    BatchSums,
    OfflineConfig,
    OfflineResult,
    OfflineTask,
    Split,
    load_splits,
    run_offline,
)

SftResult: TypeAlias = OfflineResult

PACKING_TOLERANCE = 0.02
"""Largest difference between packed and single logits, relative to the largest logit: above what
bfloat16 rounds, far below what another row's tokens do."""

logger = logging.getLogger(__name__)


class SftConfig(OfflineConfig):
    """Supervised fine-tuning."""

    add_eos: bool = Field(
        default=True, description="End plain completions with EOS, so that the policy learns to."
    )
    packing: bool = Field(
        default=False,
        description="Compute the rows of a batch as one sequence without padding; each still sees "
        "only itself. Pays where lengths differ much.",
    )


def run_sft(config: SftConfig) -> SftResult:
    """Fine-tunes a policy on the completions of `config.train_data`.

    Logs `loss`, `mean_token_accuracy`, `grad_norm`, `learning_rate`, `num_tokens` and `epoch`, and
    the first two as `eval_loss` and `eval_mean_token_accuracy` on held-out rows.

    Raises:
        ConfigError: If model, tokenizer or data cannot be used; names the field and the fix.
    """
    join_world(config)
    set_seed(config.seed)
    train, held_out = load_splits(config)
    model, tokenizer = load_policy(config)
    return run_offline(_SftTask(config, model, tokenizer, (train, held_out)), config)


def completion_loss(
    model: PreTrainedModel, batch: PaddedBatch | PackedBatch
) -> tuple[torch.Tensor, int]:
    """Cross-entropy of the completion tokens of a batch.

    Logits are computed only where some row of the batch has a completion token to predict, if the
    model can do that: a full [B, T, V] tensor is by far the largest thing in a step.

    Returns:
        The sum over all completion tokens in nats, float32 scalar with a gradient, and how many of
        them the model ranks first.
    """
    predicts_BT = batch.completion_mask[:, 1:]
    positions_K = predicts_BT.any(dim=0).nonzero().squeeze(1)
    inputs = batch.model_inputs()
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits_BKV = model(**inputs, logits_to_keep=positions_K, use_cache=False).logits
    else:
        logits_BKV = model(**inputs, use_cache=False).logits[:, positions_K]
    predicts_BK = predicts_BT[:, positions_K]
    logits_NV = logits_BKV[predicts_BK].float()
    targets_N = batch.input_ids[:, positions_K + 1][predicts_BK]
    num_correct = int((logits_NV.argmax(dim=-1) == targets_N).sum())
    return F.cross_entropy(logits_NV, targets_N, reduction="sum"), num_correct


class _SftTask(OfflineTask):
    """One row is one completion; units are its tokens."""

    name = "sft"

    def __init__(
        self,
        config: SftConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Examples, Examples | None],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._packing = config.packing
        if config.packing:
            _check_packing(model)
        train, held_out = data
        self._pairs: dict[Split, list[TokenizedPair]] = {
            "train": _tokenize(train, tokenizer, config),
            "eval": _tokenize(held_out, tokenizer, config) if held_out is not None else [],
        }
        self.lengths: Mapping[Split, Sequence[int]] = {
            split: [len(pair.input_ids) for pair in pairs] for split, pairs in self._pairs.items()
        }
        self.units: Mapping[Split, Sequence[int]] = {
            split: [len(pair.input_ids) - pair.num_prompt_tokens for pair in pairs]
            for split, pairs in self._pairs.items()
        }

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        pairs = [self._pairs[split][row] for row in rows]
        device = self.model.device
        batch: PaddedBatch | PackedBatch
        if self._packing:
            batch = pack(pairs, device=device)
        else:
            batch = pad_right(pairs, pad_token_id=int(self.tokenizer.pad_token_id), device=device)
        loss, num_correct = completion_loss(self.model, batch)
        return BatchSums(loss=loss, metrics={"mean_token_accuracy": float(num_correct)})


@torch.no_grad()
def _check_packing(model: PreTrainedModel) -> None:
    """Whether a model keeps packed sequences apart, asked of itself: a list would grow old.

    Raises:
        ConfigError: If it does not.
    """
    first, second = [1, 2, 3, 2], [3, 1, 2]
    pairs = [TokenizedPair(input_ids=ids, num_prompt_tokens=1) for ids in (first, second)]
    packed = pack(pairs, device=model.device)
    together = model(**packed.model_inputs(), use_cache=False).logits[0, len(first) :].float()
    ids = torch.tensor([second], device=model.device)
    alone = model(input_ids=ids, use_cache=False).logits[0].float()
    tolerance = PACKING_TOLERANCE * float(alone.abs().max())
    if float((together - alone).abs().max()) > tolerance:
        raise ConfigError(
            f"packing: true, but a {model.config.model_type} model lets packed rows see each "
            "other; set packing: false"
        )


def _tokenize(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, config: SftConfig
) -> list[TokenizedPair]:
    """Token ids of all rows; what exceeds `max_length` is cut off, and a row of which no completion
    is left is dropped.
    """
    kept = []
    num_cut = 0
    for example in examples.require("completion"):
        assert example.completion is not None  # `require` has seen to it
        try:
            pair = tokenize_pair(
                tokenizer, example.prompt, example.completion, add_eos=config.add_eos
            )
        except DataError as error:
            raise DataError(f"{example.where}: {error}") from error
        if pair.num_prompt_tokens == 0:  # nothing predicts a sequence's first token
            pair = TokenizedPair(input_ids=pair.input_ids, num_prompt_tokens=1)
        num_cut += len(pair.input_ids) > config.max_length
        if pair.num_prompt_tokens < min(len(pair.input_ids), config.max_length):
            kept.append(
                TokenizedPair(
                    input_ids=pair.input_ids[: config.max_length],
                    num_prompt_tokens=pair.num_prompt_tokens,
                )
            )
    if not kept:
        raise DataError(
            f"max_length: {config.max_length} tokens leave no completion in any of the "
            f"{len(examples)} rows of {examples.source}; raise it"
        )
    if num_cut:
        logger.warning(
            "max_length: %d of %d rows of %s are longer than %d tokens: %d dropped, the others cut "
            "off",
            num_cut,
            len(examples),
            examples.source,
            config.max_length,
            len(examples) - len(kept),
        )
    return kept
