"""What a batch of preferences costs: the tasks that the offline loop runs.

Legend: N pairs or completions of a batch, K completions of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardsvc.policy_client.algorithms.preference.kto import kto_kl, kto_loss
from rewardsvc.policy_client.algorithms.preference.rrhf import rrhf_loss
from rewardsvc.policy_client.algorithms.preference.types import PairLogps
from rewardsvc.policy_client.train.data import DataError
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair
from rewardsvc.policy_client.train.offline import BatchSums, OfflineTask, Split
from rewardsvc.policy_client.train.preference.config import KtoConfig, PreferenceConfig, RrhfConfig
from rewardsvc.policy_client.train.preference.data import (
    LabelledRow,
    PairRow,
    RankedRow,
    num_tokens,
)
from rewardsvc.policy_client.train.preference.logps import CompletionLogps, completion_lengths

Row = TypeVar("Row")
Splits: TypeAlias = Mapping[Split, Sequence[Row]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Models:
    """What a preference trainer works with.

    Attributes:
        policy: What learns.
        tokenizer: Saved beside it.
        reference: The frozen reference, for those that need one; only read in the constructor of a
            task. It may be the policy itself, before its first step.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None = None

    @property
    def pad_token_id(self) -> int:
        """What stands where there is no token."""
        return int(self.tokenizer.pad_token_id)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairBatch:
    """What a loss on pairs may use.

    Attributes:
        logps: Of the N pairs.
        rows: The same pairs as token ids.
        policy: For losses that need more of the policy than `logps`.
    """

    logps: PairLogps
    rows: Sequence[PairRow]
    policy: CompletionLogps


PairLoss: TypeAlias = Callable[[PairBatch], Tensor]
"""float [N] of a batch of pairs."""


class PairTask(OfflineTask):
    """One row is one pair, and so is one unit."""

    def __init__(
        self,
        name: str,
        models: Models,
        rows: Splits[PairRow],
        config: PreferenceConfig,
        *,
        loss: PairLoss,
        reward: Callable[[PairLogps], tuple[Tensor, Tensor]],
    ) -> None:
        """A task.

        Args:
            name: Of the algorithm.
            models: With a reference if the loss needs one.
            rows: Pairs of each split.
            config: For batch sizes.
            loss: Of a batch.
            reward: The implicit rewards of chosen and rejected completions, float [N] each, that
                pair accuracy is measured by.
        """
        self.name = name
        self.model = models.policy
        self.tokenizer = models.tokenizer
        self._rows = rows
        self._loss = loss
        self._reward = reward
        self._policy = CompletionLogps(models.policy, pad_token_id=models.pad_token_id)
        self._reference: Mapping[Split, tuple[Tensor, Tensor]] = {}
        if models.reference is not None:
            frozen = CompletionLogps(models.reference, pad_token_id=models.pad_token_id)
            size = config.per_device_eval_batch_size
            self._reference = {
                split: (
                    frozen.in_batches([pair.chosen for pair in pairs], size),
                    frozen.in_batches([pair.rejected for pair in pairs], size),
                )
                for split, pairs in rows.items()
            }
        self.lengths = {
            split: [num_tokens((pair.chosen, pair.rejected)) for pair in pairs]
            for split, pairs in rows.items()
        }
        self.units = {split: [1] * len(pairs) for split, pairs in rows.items()}

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        """See `OfflineTask`."""
        pairs = [self._rows[split][row] for row in rows]
        chosen, rejected = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
        chosen_N, rejected_N = self._policy([*chosen, *rejected]).chunk(2)
        references: dict[str, Tensor] = {}
        if self._reference:
            both = [values[list(rows)].to(chosen_N) for values in self._reference[split]]
            references = dict(zip(("ref_chosen", "ref_rejected"), both, strict=True))
        logps = PairLogps(
            chosen=chosen_N,
            rejected=rejected_N,
            chosen_tokens=completion_lengths(chosen, like=chosen_N),
            rejected_tokens=completion_lengths(rejected, like=chosen_N),
            **references,
        )
        loss_N = self._loss(PairBatch(logps=logps, rows=pairs, policy=self._policy))
        with torch.no_grad():
            chosen_reward_N, rejected_reward_N = self._reward(logps)
        return BatchSums(
            loss=loss_N.sum(),
            metrics={
                "rewards/chosen": float(chosen_reward_N.sum()),
                "rewards/rejected": float(rejected_reward_N.sum()),
                "rewards/accuracies": float((chosen_reward_N > rejected_reward_N).sum()),
                "rewards/margins": float((chosen_reward_N - rejected_reward_N).sum()),
                "logps/chosen": float(chosen_N.detach().sum()),
                "logps/rejected": float(rejected_N.detach().sum()),
            },
        )


class KtoTask(OfflineTask):
    """One row is one completion, and so is one unit.

    The reference point is estimated on completions of other prompts. Each row has one partner for
    the whole run, the next row with another prompt: within a batch there may be none.
    """

    name = "kto"

    def __init__(self, models: Models, rows: Splits[LabelledRow], config: KtoConfig) -> None:
        """As `PairTask`.

        Raises:
            DataError: If all rows of a split have the same prompt.
        """
        assert models.reference is not None, "KTO compares with a reference"
        self.model = models.policy
        self.tokenizer = models.tokenizer
        self._config = config
        self._rows = rows
        self._mismatched = {split: _mismatched(found) for split, found in rows.items()}
        self._policy = CompletionLogps(models.policy, pad_token_id=models.pad_token_id)
        frozen = CompletionLogps(models.reference, pad_token_id=models.pad_token_id)
        self._batch_size = config.per_device_eval_batch_size
        self._reference = {
            split: frozen.in_batches([row.completion for row in found], self._batch_size)
            for split, found in rows.items()
        }
        self._mismatched_reference = {
            split: frozen.in_batches(found, self._batch_size)
            for split, found in self._mismatched.items()
        }
        self._kl = torch.zeros(())
        self.lengths = {
            split: [len(row.completion.input_ids) for row in found] for split, found in rows.items()
        }
        self.units = {split: [1] * len(found) for split, found in rows.items()}

    def begin(self, split: Split, rows: Sequence[int], step: int) -> Mapping[str, float]:
        """Estimates the reference point on the whole batch, however it is cut afterwards."""
        mismatched = [self._mismatched[split][row] for row in rows]
        logps_N = self._policy.in_batches(mismatched, self._batch_size)
        self._kl = kto_kl(logps_N - self._mismatched_reference[split][list(rows)])
        return {"kl": float(self._kl)}

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        """See `OfflineTask`."""
        found = [self._rows[split][row] for row in rows]
        logps_N = self._policy([row.completion for row in found])
        log_ratio_N = logps_N - self._reference[split][list(rows)].to(logps_N)
        desirable_N = torch.tensor([row.desirable for row in found], device=logps_N.device)
        loss_N = kto_loss(
            log_ratio_N,
            desirable_N,
            kl=self._kl.to(logps_N),
            beta=self._config.beta,
            weights=(self._config.desirable_weight, self._config.undesirable_weight),
        )
        reward_N = self._config.beta * log_ratio_N.detach()
        right_N = (reward_N > self._config.beta * self._kl.to(reward_N)) == desirable_N
        return BatchSums(
            loss=loss_N.sum(),
            metrics={
                "rewards/desirable": float(reward_N[desirable_N].sum()),
                "rewards/undesirable": float(reward_N[~desirable_N].sum()),
                "rewards/accuracies": float(right_N.sum()),
            },
        )


class RrhfTask(OfflineTask):
    """One row is one prompt with its completions, and so is one unit."""

    name = "rrhf"

    def __init__(self, models: Models, rows: Splits[RankedRow], config: RrhfConfig) -> None:
        self.model = models.policy
        self.tokenizer = models.tokenizer
        self._config = config
        self._rows = rows
        self._policy = CompletionLogps(models.policy, pad_token_id=models.pad_token_id)
        self.lengths = {
            split: [num_tokens(row.completions) for row in found] for split, found in rows.items()
        }
        self.units = {split: [1] * len(found) for split, found in rows.items()}

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        """See `OfflineTask`."""
        found = [self._rows[split][row] for row in rows]
        flat = list(chain.from_iterable(row.completions for row in found))
        logps = self._policy(flat)
        sizes = [len(row.completions) for row in found]
        means = torch.split(logps / completion_lengths(flat, like=logps), sizes)
        losses, accuracies = [], []
        for row, mean_K in zip(found, means, strict=True):
            reward_K = torch.tensor(row.rewards, device=mean_K.device)
            losses.append(rrhf_loss(mean_K, reward_K, nll_coefficient=self._config.sft_coefficient))
            accuracies.append(_pair_accuracy(mean_K.detach(), reward_K))
        return BatchSums(
            loss=torch.stack(losses).sum(), metrics={"rewards/accuracies": sum(accuracies)}
        )


def _pair_accuracy(mean_K: Tensor, reward_K: Tensor) -> float:
    """Share of a prompt's pairs with different rewards that the policy ranks alike; 1 of none."""
    worse_KK = reward_K[:, None] < reward_K[None, :]
    right_KK = (mean_K[:, None] < mean_K[None, :]) & worse_KK
    num_pairs = int(worse_KK.sum())
    return int(right_KK.sum()) / num_pairs if num_pairs else 1.0


def _mismatched(rows: Sequence[LabelledRow]) -> list[TokenizedPair]:
    """Each row's prompt with the completion of the next row that has another prompt."""

    def prompt(row: LabelledRow) -> list[int]:
        return row.completion.input_ids[: row.completion.num_prompt_tokens]

    found: list[TokenizedPair] = []
    for index, row in enumerate(rows):
        later = (rows[(index + step) % len(rows)] for step in range(1, len(rows)))
        partner = next((other for other in later if prompt(other) != prompt(row)), None)
        if partner is None:
            raise DataError(
                "all rows have the same prompt; KTO's reference point needs completions of others"
            )
        completion = partner.completion.input_ids[partner.completion.num_prompt_tokens :]
        found.append(
            TokenizedPair(
                input_ids=prompt(row) + completion,
                num_prompt_tokens=row.completion.num_prompt_tokens,
            )
        )
    return found
