"""Completions of a batch of prompts, with their rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardsvc.policy_client.train.data import DataError, Examples
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair, tokenize_prompt
from rewardsvc.policy_client.train.online.build import eos_ids
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.outage import Patience
from rewardsvc.policy_client.train.online.rewards import RewardRequest, RewardSource
from rewardsvc.policy_client.train.online.rollout import FinishReason
from rewardsvc.policy_client.train.online.sampling import SamplingParams

_SEED_STRIDE = 1_000_003
"""A prime: seeds of different runs and steps do not meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One completion that has a reward."""

    tokens: TokenizedPair
    reward: float


class CandidateSource:
    """Samples completions of prompts and has them rewarded."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardSource,
        sampling: SamplingParams,
        *,
        num_generations: int,
        max_outage_s: float,
        seed: int,
    ) -> None:
        """Wraps a policy; it sees every update of the model's weights.

        Args:
            model: The policy.
            tokenizer: Its tokenizer.
            reward: Rewards completions.
            sampling: How they are drawn.
            num_generations: Completions of each prompt.
            max_outage_s: For how long the reward source may be away.
            seed: Of sampling. A step's completions follow from it and the step's number alone, so a
                resumed run draws what the interrupted one would have.
        """
        self._engine = TransformersRollout(
            model, eos_ids=eos_ids(model, tokenizer), pad_id=int(tokenizer.pad_token_id)
        )
        self._device = model.device
        self._tokenizer = tokenizer
        self._reward = reward
        self._sampling = sampling
        self._num_generations = num_generations
        self._patience = Patience(max_outage_s)
        self._seed = seed

    def prompt_lengths(self, examples: Examples | None, *, max_length: int) -> list[int]:
        """Tokens of each prompt.

        Raises:
            DataError: If a prompt leaves no room for a completion, or cannot be rendered.
        """
        lengths = []
        for example in examples or ():
            try:
                ids = tokenize_prompt(self._tokenizer, example.prompt)
            except DataError as error:
                raise DataError(f"{example.where}: {error}") from error
            if not ids or len(ids) + self._sampling.max_new_tokens > max_length:
                raise DataError(
                    f"{example.where}: the prompt has {len(ids)} tokens; with max_new_tokens "
                    f"{self._sampling.max_new_tokens} it must fit into max_length {max_length}"
                )
            lengths.append(len(ids))
        return lengths

    def draw(
        self, examples: Examples, rows: Sequence[int], step: int
    ) -> tuple[list[list[Candidate]], Mapping[str, float]]:
        """Candidates of each row's prompt, and metrics over all of them.

        A completion without a reward is no candidate, nor is one that was given up or is empty.

        Raises:
            OutageError: If the reward source stays away for too long.
        """
        generator = torch.Generator(self._device).manual_seed(self._seed * _SEED_STRIDE + step)
        prompts = [tokenize_prompt(self._tokenizer, examples[row].prompt) for row in rows]
        rollout = self._engine.generate(prompts, self._num_generations, self._sampling, generator)
        completions = rollout.completion_lists()
        request = RewardRequest(
            examples=[examples[row] for row in rows for _ in range(self._num_generations)],
            completions=self._tokenizer.batch_decode(completions, skip_special_tokens=True),
            completion_ids=completions,
        )
        values = self._patience.call(lambda: self._reward.score(request), "the reward service")
        rewards = values.values.astype(np.float64)
        candidates: list[list[Candidate]] = [[] for _ in rows]
        for index, (ids, reward, finish) in enumerate(
            zip(completions, rewards.tolist(), rollout.finish, strict=True)
        ):
            group = index // self._num_generations
            if ids and not math.isnan(reward) and finish is not FinishReason.ABORT:
                tokens = TokenizedPair(
                    input_ids=[*prompts[group], *ids], num_prompt_tokens=len(prompts[group])
                )
                candidates[group].append(Candidate(tokens=tokens, reward=reward))
        known = rewards[~np.isnan(rewards)]
        return candidates, {
            "reward": float(known.mean()) if len(known) else math.nan,
            "reward_std": float(known.std()) if len(known) else math.nan,
            "rewards/missing": float(np.isnan(rewards).mean()),
            "completions/mean_length": float(np.mean([len(ids) for ids in completions])),
            "completions/clipped_ratio": float(
                np.mean([finish is FinishReason.LENGTH for finish in rollout.finish])
            ),
        }
