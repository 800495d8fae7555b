"""The PTX mix: a share of ordinary text in every optimiser step, against forgetting.

loss = policy loss + coef * mean over tokens of -log p(token), on completions of a data set.

Source: Ouyang et al. 2022, "Training Language Models to Follow Instructions with Human Feedback",
equation 2 (arXiv:2203.02155).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.data import Example, PromptSampler
from rewardsvc.policy_client.train.data.tokenize import tokenize_pair
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.recompute import recomputed
from rewardsvc.policy_client.train.online.sequences import Sequences
from rewardsvc.policy_client.train.sharding import begin_pass, is_sharded


class PtxMix:
    """Adds the gradient of the data's negative log-likelihood."""

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        forward: PolicyForward,
        *,
        coef: float,
        batch_size: int,
        max_tokens: int,
        seed: int,
        activation_checkpointing: bool = False,
        world: World | None = None,
    ) -> None:
        """Tokenises the data.

        Args:
            examples: With a prompt, which may be empty only if the tokenizer has a BOS, and a
                completion.
            tokenizer: Of the policy.
            forward: The policy at temperature 1: the data was not sampled from it at another one.
            coef: Weight of the mean loss of a token.
            batch_size: Examples in each optimiser step.
            max_tokens: Padded tokens in one forward and backward pass.
            seed: Of the data's order.
            activation_checkpointing: Whether to compute activations again in the backward pass.
            world: Of this process.

        Raises:
            ConfigError: If an example has no prompt, or no completion.
        """
        self._rows = [self._tokenized(example, tokenizer) for example in examples]
        self._order = PromptSampler(len(self._rows), batch_size, seed)
        self._forward = forward
        self._coef = coef
        self._max_tokens = max_tokens
        self._recompute = activation_checkpointing
        self._world = world or World()
        self._pad_id = int(tokenizer.pad_token_id)

    @staticmethod
    def _tokenized(
        example: Example, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], list[int]]:
        if example.completion is None:
            raise ConfigError(f"ptx.data: {example.where}: column 'completion' is missing")
        pair = tokenize_pair(tokenizer, example.prompt, example.completion)
        prompt = pair.input_ids[: pair.num_prompt_tokens]
        if not prompt and tokenizer.bos_token_id is None:
            raise ConfigError(f"ptx.data: {example.where}: the prompt is empty; give it a token")
        completion = pair.input_ids[pair.num_prompt_tokens :]
        return prompt or [int(tokenizer.bos_token_id)], completion

    def backward(self) -> tuple[float, float]:
        """Adds the gradient of the next batch to the policy's; of several processes, of a share.

        Returns:
            `(loss, weight)`: this process's part of the batch's mean loss in nats, and of 1.
        """
        rows = [self._rows[index] for index in self._order.next_batch()]
        sequences = self._sequences([row for row in rows if row[1]], self._forward.model.device)
        weight = 1.0 / self._world.size
        if sequences is None:
            return 0.0, weight
        num_tokens = sum(sequences.completion_lengths)
        hands = sequences.dealt(self._max_tokens, self._world)
        mine, total = hands[self._world.rank], 0.0
        for number in range(max(map(len, hands))):
            idle = number >= len(mine)
            if idle and not is_sharded(self._forward.model):
                break
            # Weights that are divided come together for all processes at once: see `Updater`.
            part = hands[0][0] if idle else mine[number]
            begin_pass(self._forward.model)
            with recomputed(self._forward.model) if self._recompute else nullcontext():
                loss = -self._forward(sequences.select(part)).logprobs.sum() / num_tokens
            (self._coef * (0.0 if idle else 1.0) * loss).backward()  # type: ignore[no-untyped-call]
            total += 0.0 if idle else float(loss.detach())
        return total, weight

    def _sequences(
        self, rows: Sequence[tuple[list[int], list[int]]], device: torch.device
    ) -> Sequences | None:
        if not rows:
            return None
        width = max(len(completion) for _, completion in rows)
        ids = torch.full((len(rows), width), self._pad_id, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for number, (_, completion) in enumerate(rows):
            ids[number, : len(completion)] = torch.tensor(completion)
            mask[number, : len(completion)] = True
        return Sequences(
            prompts=tuple(tuple(prompt) for prompt, _ in rows),
            completion_lengths=tuple(len(completion) for _, completion in rows),
            completion_ids=ids.to(device),
            completion_mask=mask.to(device),
            pad_id=self._pad_id,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where in the data we are; JSON values."""
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self._order.load_state_dict(dict(state))
