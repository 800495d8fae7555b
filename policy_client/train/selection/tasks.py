"""What a batch of prompts costs, once its completions are drawn and selected from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardsvc.policy_client.algorithms.preference.dpo import dpo_loss
from rewardsvc.policy_client.algorithms.preference.ipo import ipo_loss
from rewardsvc.policy_client.algorithms.preference.slic import slic_loss
from rewardsvc.policy_client.algorithms.preference.sppo import sppo_loss
from rewardsvc.policy_client.algorithms.preference.types import PairLogps
from rewardsvc.policy_client.train.data import Examples
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair
from rewardsvc.policy_client.train.lora import adapters_off, copy_of, has_adapters
from rewardsvc.policy_client.train.offline import BatchSums, OfflineTask, Split
from rewardsvc.policy_client.train.preference.logps import CompletionLogps, completion_lengths
from rewardsvc.policy_client.train.selection.config import OnlineDpoConfig, RaftConfig
from rewardsvc.policy_client.train.selection.sampled import Candidate, CandidateSource
from rewardsvc.policy_client.train.sharding import whole_state

LOSSES = {
    "dpo": lambda pairs, beta: dpo_loss(pairs, beta=beta),
    "ipo": lambda pairs, beta: ipo_loss(pairs, beta=beta),
    "slic": lambda pairs, beta: slic_loss(pairs, beta=beta, use_reference=True),
    "sppo": lambda pairs, beta: sppo_loss(pairs, beta=beta),
}


class SelectionTask(OfflineTask):
    """Draws completions at the beginning of each step; what they are used for is the child's."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Examples, Examples | None],
        source: CandidateSource,
        *,
        max_length: int,
    ) -> None:
        """A task.

        Args:
            model: The policy.
            tokenizer: Its tokenizer.
            data: Prompts to learn from and held-out ones.
            source: Of completions with rewards.
            max_length: Of prompt and completion together.

        Raises:
            DataError: If a prompt is too long.
        """
        self.model = model
        self.tokenizer = tokenizer
        self._data = data
        self._source = source
        self._policy = CompletionLogps(model, pad_token_id=int(tokenizer.pad_token_id))
        prompts: dict[Split, Examples | None] = {"train": data[0], "eval": data[1]}
        self.lengths = {
            split: source.prompt_lengths(found, max_length=max_length)
            for split, found in prompts.items()
        }
        self._units: dict[Split, list[int]] = {
            split: [0] * len(found) for split, found in self.lengths.items()
        }
        self.units: Mapping[Split, Sequence[int]] = self._units

    def begin(self, split: Split, rows: Sequence[int], step: int) -> Mapping[str, float]:
        """Draws completions and selects from them."""
        examples = self._data[0] if split == "train" else self._data[1]
        assert examples is not None  # there are rows
        # An evaluation draws with the same numbers each time: less noise between two of them.
        candidates, metrics = self._source.draw(examples, rows, step if split == "train" else -1)
        for row, found in zip(rows, candidates, strict=True):
            self._units[split][row] = self.select(split, row, found)
        used = sum(self._units[split][row] > 0 for row in rows)
        return {**metrics, "selection/used_prompts": used / len(rows)}

    def select(self, split: Split, row: int, candidates: Sequence[Candidate]) -> int:
        """Keeps what is to be learned from a row's candidates.

        Returns:
            The row's units; 0 if there is nothing to learn.
        """
        raise NotImplementedError


class OnlinePairTask(SelectionTask):
    """Best against worst of each prompt; one unit a pair."""

    name = "online_dpo"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Examples, Examples | None],
        source: CandidateSource,
        config: OnlineDpoConfig,
    ) -> None:
        super().__init__(model, tokenizer, data, source, max_length=config.max_length)
        self._config = config
        # The model without its adapters is the reference, as long as that stays what it is.
        self._switched = config.reference_update_steps is None and has_adapters(model)
        self._frozen: PreTrainedModel = model
        self._reference = self._policy
        if not self._switched:
            self._frozen = copy_of(model).requires_grad_(False)
            self._reference = CompletionLogps(
                self._frozen, pad_token_id=int(tokenizer.pad_token_id)
            )
        self._pairs: dict[tuple[Split, int], tuple[TokenizedPair, TokenizedPair]] = {}

    def modules(self) -> Mapping[str, nn.Module]:
        """The reference too, where it changes."""
        if self._config.reference_update_steps is None:
            return super().modules()
        return {**super().modules(), "reference": self._frozen}

    def begin(self, split: Split, rows: Sequence[int], step: int) -> Mapping[str, float]:
        """Brings the reference up to date, where it is time, and draws."""
        every = self._config.reference_update_steps
        if split == "train" and every is not None and step > 1 and (step - 1) % every == 0:
            self._frozen.load_state_dict(whole_state(self.model))
        return super().begin(split, rows, step)

    def select(self, split: Split, row: int, candidates: Sequence[Candidate]) -> int:
        """The pair of the best and the worst, if they differ enough."""
        self._pairs.pop((split, row), None)
        if not candidates:
            return 0
        best = max(candidates, key=lambda one: one.reward)
        worst = min(candidates, key=lambda one: one.reward)
        if not best.reward - worst.reward > self._config.min_margin:
            return 0
        self._pairs[split, row] = best.tokens, worst.tokens
        return 1

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        """See `OfflineTask`."""
        chosen, rejected = zip(*(self._pairs[split, row] for row in rows), strict=True)
        both = [*chosen, *rejected]
        with torch.no_grad(), adapters_off(self.model) if self._switched else nullcontext():
            ref_chosen_N, ref_rejected_N = self._reference(both).chunk(2)
        chosen_N, rejected_N = self._policy(both).chunk(2)
        logps = PairLogps(
            chosen=chosen_N,
            rejected=rejected_N,
            chosen_tokens=completion_lengths(chosen, like=chosen_N),
            rejected_tokens=completion_lengths(rejected, like=chosen_N),
            ref_chosen=ref_chosen_N,
            ref_rejected=ref_rejected_N,
        )
        loss_N = LOSSES[self._config.loss](logps, self._config.beta)
        margin_N = (logps.chosen_log_ratio - logps.rejected_log_ratio).detach()
        return BatchSums(
            loss=loss_N.sum(),
            metrics={
                "rewards/accuracies": float((margin_N > 0).sum()),
                "rewards/margins": float(self._config.beta * margin_N.sum()),
                "logps/chosen": float(chosen_N.detach().sum()),
                "logps/rejected": float(rejected_N.detach().sum()),
            },
        )


class RaftTask(SelectionTask):
    """The best completion of each prompt; units are its tokens.

    Source: Dong et al. 2023, "RAFT", arXiv:2304.06767, algorithm 1; with a threshold it is the
        expert iteration of ReST (Gulcehre et al. 2023, arXiv:2308.08998).
    """

    name = "raft"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Examples, Examples | None],
        source: CandidateSource,
        config: RaftConfig,
    ) -> None:
        super().__init__(model, tokenizer, data, source, max_length=config.max_length)
        self._config = config
        self._best: dict[tuple[Split, int], TokenizedPair] = {}

    def select(self, split: Split, row: int, candidates: Sequence[Candidate]) -> int:
        """The best one, if it is good enough; of several, the first."""
        self._best.pop((split, row), None)
        if not candidates:
            return 0
        best = max(candidates, key=lambda one: one.reward)
        least = self._config.min_reward
        if least is None:
            good = best.reward > min(one.reward for one in candidates)
        else:
            good = best.reward >= least
        if not good:
            return 0
        self._best[split, row] = best.tokens
        return len(best.tokens.input_ids) - best.tokens.num_prompt_tokens

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        """See `OfflineTask`."""
        return BatchSums(loss=-self._policy([self._best[split, row] for row in rows]).sum())
