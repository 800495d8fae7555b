"""Completions with their rewards: decodes prompts, and has finished ones scored meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.train.data.examples import Example
from rewardsvc.policy_client.train.data.tokenize import prompt_to_text, tokenize_prompt
from rewardsvc.policy_client.train.online.reward_desk import RewardDesk, collect
from rewardsvc.policy_client.train.online.rewards import RewardRequest, Rewards
from rewardsvc.policy_client.train.online.rollout import Rollout, RolloutEngine, concat_rollouts
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.run_data import SampleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingBatch:
    """Completions whose rewards are on their way.

    Attributes:
        examples: The row of the data set of each completion.
        texts: The completions' text.
        rollout: The completions.
        rollout_s: Seconds that decoding took.
    """

    examples: tuple[Example, ...]
    texts: tuple[str, ...]
    rollout: Rollout
    rollout_s: float
    _futures: tuple[Future[Rewards], ...]

    def rewards(self) -> Rewards:
        """The rewards; waits for them. Completions that the engine gave up on have none.

        Raises:
            OutageError: If the reward source stays away for too long.
        """
        rewards = collect(self._futures)
        aborted = self.rollout.aborted
        return rewards.without(aborted.cpu().numpy()) if bool(aborted.any()) else rewards


class CompletionSampler:
    """Decodes prompts of examples, and hands the completions to a reward desk."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
        desk: RewardDesk,
        *,
        chunk_prompts: int | None,
    ) -> None:
        """Puts the parts together.

        Args:
            engine: Makes completions.
            tokenizer: Of the policy.
            desk: Where completions are scored.
            chunk_prompts: Prompts decoded at once; None for all.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._desk = desk
        self._chunk_prompts = chunk_prompts

    def sample(
        self,
        examples: Sequence[Example],
        num_return: int,
        sampling: SamplingParams,
        generator: torch.Generator,
    ) -> PendingBatch:
        """`num_return` completions of each example, those of one next to each other."""
        began = time.perf_counter()
        size = self._chunk_prompts or len(examples)
        rollouts: list[Rollout] = []
        texts: list[str] = []
        futures: list[Future[Rewards]] = []
        for start in range(0, len(examples), size):
            chunk = examples[start : start + size]
            prompt_ids = [tokenize_prompt(self._tokenizer, example.prompt) for example in chunk]
            rollout = self._engine.generate(prompt_ids, num_return, sampling, generator)
            ids = rollout.completion_lists()
            decoded = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
            request = RewardRequest(
                examples=[example for example in chunk for _ in range(num_return)],
                completions=decoded,
                completion_ids=ids,
            )
            futures.append(self._desk.submit(request))
            rollouts.append(rollout)
            texts.extend(decoded)
        return PendingBatch(
            examples=tuple(example for example in examples for _ in range(num_return)),
            texts=tuple(texts),
            rollout=concat_rollouts(rollouts, pad_id=int(self._tokenizer.pad_token_id)),
            rollout_s=time.perf_counter() - began,
            _futures=tuple(futures),
        )

    def rows(self, batch: PendingBatch, rewards: Rewards, limit: int) -> list[SampleRow]:
        """The first `limit` completions, for the log."""
        return [
            SampleRow(
                prompt=prompt_to_text(self._tokenizer, batch.examples[i].prompt),
                completion=batch.texts[i],
                answer=batch.examples[i].answer,
                reward=_none_if_nan(float(rewards.values[i])),
                components={
                    name: float(column[i])
                    for name, column in rewards.components.items()
                    if column[i] == column[i]
                },
            )
            for i in range(min(limit, len(batch.texts)))
        ]


def _none_if_nan(value: float) -> float | None:
    return value if value == value else None
