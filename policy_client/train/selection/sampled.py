"""Completions of a batch of prompts, with their rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardsvc.policy_client.train.data import DataError, Examples
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair, tokenize_prompt
from rewardsvc.policy_client.train.launch import current_world
from rewardsvc.policy_client.train.online.build import eos_ids
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.outage import OutageError, Patience
from rewardsvc.policy_client.train.online.rewards import RewardRequest, RewardSource
from rewardsvc.policy_client.train.online.rollout import FinishReason
from rewardsvc.policy_client.train.online.sampling import (
    CompletionSeeds,
    Randomness,
    SamplingParams,
)

_SEED_STRIDE = 1_000_003
"""A prime: seeds of different runs and steps do not meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One completion that has a reward."""

    tokens: TokenizedPair
    reward: float


class _Drawn(NamedTuple):
    """Completions, their rewards (NaN for none) and why they ended; JSON values."""

    completions: list[list[int]]
    rewards: list[float]
    finish: list[str]

    @classmethod
    def joined(cls, parts: Sequence[_Drawn]) -> _Drawn:
        return cls(*(list(chain.from_iterable(column)) for column in zip(*parts, strict=True)))


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
        seed_each: bool | None = None,
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
            seed_each: Whether each completion has random numbers of its own; None: if there are
                several processes.
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
        self._world = current_world()
        self._seed_each = self._world.size > 1 if seed_each is None else seed_each

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
        world, num = self._world, self._num_generations
        share = world.share(len(rows))
        seed = self._seed * _SEED_STRIDE + step
        source: Randomness = torch.Generator(self._device).manual_seed(seed)
        if self._seed_each:
            numbers = range(share.start * num, share.stop * num)
            source = CompletionSeeds.derived(seed, numbers)
        mine = world.settled(
            lambda: self._drawn(examples, rows[share.start : share.stop], source), OutageError
        )
        everything = _Drawn.joined([_Drawn(*told) for told in world.gather(list(mine))])
        return self._judged(examples, rows, everything)

    def _drawn(self, examples: Examples, rows: Sequence[int], source: Randomness) -> _Drawn:
        if not rows:  # fewer prompts than processes
            return _Drawn([], [], [])
        prompts = [tokenize_prompt(self._tokenizer, examples[row].prompt) for row in rows]
        rollout = self._engine.generate(prompts, self._num_generations, self._sampling, source)
        completions = rollout.completion_lists()
        request = RewardRequest(
            examples=[examples[row] for row in rows for _ in range(self._num_generations)],
            completions=self._tokenizer.batch_decode(completions, skip_special_tokens=True),
            completion_ids=completions,
        )
        values = self._patience.call(lambda: self._reward.score(request), "the reward service")
        return _Drawn(completions, values.values.astype(np.float64).tolist(), list(rollout.finish))

    def _judged(
        self, examples: Examples, rows: Sequence[int], drawn: _Drawn
    ) -> tuple[list[list[Candidate]], Mapping[str, float]]:
        completions, finished = drawn.completions, drawn.finish
        prompts = [tokenize_prompt(self._tokenizer, examples[row].prompt) for row in rows]
        rewards = np.array(drawn.rewards, np.float64)
        candidates: list[list[Candidate]] = [[] for _ in rows]
        for index, (ids, reward, finish) in enumerate(
            zip(completions, rewards.tolist(), finished, strict=True)
        ):
            group = index // self._num_generations
            if ids and not math.isnan(reward) and finish != FinishReason.ABORT:
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
                np.mean([finish == FinishReason.LENGTH for finish in finished])
            ),
        }
