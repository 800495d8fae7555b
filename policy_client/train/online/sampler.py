"""Completions with their rewards: decodes prompts, and has finished ones scored meanwhile.

Of several processes each decodes its share of the prompts and has its own completions scored; then
all of them have everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.train.data.examples import Example
from rewardsvc.policy_client.train.data.tokenize import prompt_to_text, tokenize_prompt
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.online.exchange import gather_rewards, gather_rollouts
from rewardsvc.policy_client.train.online.outage import OutageError
from rewardsvc.policy_client.train.online.reward_desk import RewardDesk, collect
from rewardsvc.policy_client.train.online.rewards import (
    MalformedRewardsError,
    RewardRequest,
    Rewards,
)
from rewardsvc.policy_client.train.online.rollout import Rollout, RolloutEngine
from rewardsvc.policy_client.train.online.sampling import (
    CompletionSeeds,
    Randomness,
    SamplingParams,
)
from rewardsvc.policy_client.train.run_data import SampleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingBatch:
    """Completions whose rewards are on their way.

    Attributes:
        examples: The row of the data set of each completion.
        rollout: The completions, of all processes.
        rollout_s: Seconds that decoding took.
    """

    examples: tuple[Example, ...]
    rollout: Rollout
    rollout_s: float
    _futures: tuple[Future[Rewards], ...]
    _world: World

    def rewards(self) -> Rewards:
        """The rewards; waits for them. Completions that the engine gave up on have none.

        Raises:
            OutageError: If the reward source stays away for too long.
        """
        rewards = self._world.settled(self._own_rewards, OutageError, MalformedRewardsError)
        rewards = gather_rewards(self._world, rewards)
        aborted = self.rollout.aborted
        return rewards.without(aborted.cpu().numpy()) if bool(aborted.any()) else rewards

    def _own_rewards(self) -> Rewards:
        if not self._futures:  # fewer prompts than processes
            return Rewards(values=np.zeros(0, np.float32))
        return collect(self._futures)


class CompletionSampler:
    """Decodes prompts of examples, and hands the completions to a reward desk."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
        desk: RewardDesk,
        *,
        chunk_prompts: int | None,
        seed_each: bool | None = None,
        world: World | None = None,
        weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Puts the parts together.

        Args:
            engine: Makes completions.
            tokenizer: Of the policy.
            desk: Where completions are scored.
            chunk_prompts: Prompts decoded at once; None for all.
            seed_each: Whether each completion has random numbers of its own; None: if there are
                several processes.
            world: Of this process.
            weights: Within it the policy has all its weights.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._desk = desk
        self._chunk_prompts = chunk_prompts
        self._world = world or World()
        self._seed_each = self._world.size > 1 if seed_each is None else seed_each
        self._weights = weights

    def sample(
        self,
        examples: Sequence[Example],
        num_return: int,
        sampling: SamplingParams,
        generator: torch.Generator,
    ) -> PendingBatch:
        """`num_return` completions of each example, those of one next to each other."""
        began = time.perf_counter()
        mine = self._world.share(len(examples))
        size = self._chunk_prompts or max(len(mine), 1)
        rollouts: list[Rollout] = []
        futures: list[Future[Rewards]] = []
        batch_seed = None
        if self._seed_each:
            batch_seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))

        def decode() -> None:
            for start in range(mine.start, mine.stop, size):
                chunk = range(start, min(start + size, mine.stop))
                source: Randomness = generator
                if batch_seed is not None:
                    numbers = range(chunk.start * num_return, chunk.stop * num_return)
                    source = CompletionSeeds.derived(batch_seed, numbers)
                prompts = [examples[row] for row in chunk]
                rollout, future = self._decode(prompts, num_return, sampling, source)
                rollouts.append(rollout)
                futures.append(future)

        with self._weights():
            self._world.settled(decode)
        return PendingBatch(
            examples=tuple(example for example in examples for _ in range(num_return)),
            rollout=gather_rollouts(
                self._world,
                rollouts,
                pad_id=int(self._tokenizer.pad_token_id),
                device=generator.device,
            ),
            rollout_s=time.perf_counter() - began,
            _futures=tuple(futures),
            _world=self._world,
        )

    def _decode(
        self,
        examples: Sequence[Example],
        num_return: int,
        sampling: SamplingParams,
        source: Randomness,
    ) -> tuple[Rollout, Future[Rewards]]:
        prompt_ids = [tokenize_prompt(self._tokenizer, example.prompt) for example in examples]
        rollout = self._engine.generate(prompt_ids, num_return, sampling, source)
        ids = rollout.completion_lists()
        request = RewardRequest(
            examples=[example for example in examples for _ in range(num_return)],
            completions=self._tokenizer.batch_decode(ids, skip_special_tokens=True),
            completion_ids=ids,
        )
        return rollout, self._desk.submit(request)

    def rows(self, batch: PendingBatch, rewards: Rewards, limit: int) -> list[SampleRow]:
        """The first `limit` completions, for the log."""
        ids = batch.rollout.completion_lists()[:limit]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            SampleRow(
                prompt=prompt_to_text(self._tokenizer, batch.examples[i].prompt),
                completion=text,
                answer=batch.examples[i].answer,
                reward=_none_if_nan(float(rewards.values[i])),
                components={
                    name: float(column[i])
                    for name, column in rewards.components.items()
                    if column[i] == column[i]
                },
            )
            for i, text in enumerate(texts)
        ]


def _none_if_nan(value: float) -> float | None:
    return value if value == value else None
