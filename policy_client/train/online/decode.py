"""Rollouts with a transformers model: one decode loop, written for speed with small models too.

Why not `model.generate`: it hides the log-probs that a trainer needs or keeps all logits to give
them, computes the prompt once per completion, and goes on computing rows that have ended. Here

* prompts are left-padded, run once each, and their keys and values repeated for the group;
* log-probs are recorded as tokens are drawn;
* rows that have ended leave the batch once enough of them have;
* prompts of equal length need no attention mask, which lets attention take its fastest path;
* on the CPU, products of float32 go to the library that is fastest there;
* the host reads one flag per token, whether any row goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewardsvc.policy_client.train.online.kv_cache import (
    cache_argument,
    fan_out,
    new_cache,
    select_rows,
)
from rewardsvc.policy_client.train.online.linears import fast_linears
from rewardsvc.policy_client.train.online.padding import left_pad
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout
from rewardsvc.policy_client.train.online.sampling import (
    CompletionSeeds,
    Randomness,
    SamplingParams,
    draw_tokens,
)

COMPACT_BELOW = 0.75
"""Rows that ended are dropped when less than this share of the batch goes on. Dropping copies the
cache, so it must save more than one token's work."""


class TransformersRollout:
    """A `RolloutEngine` that decodes with a transformers causal model."""

    def __init__(self, model: PreTrainedModel, *, eos_ids: Collection[int], pad_id: int) -> None:
        """Wraps the policy; it sees every update of the model's weights.

        Args:
            model: A causal language model.
            eos_ids: Any of these ends a completion.
            pad_id: Stands where there is no token; never attended to.
        """
        self._model = model
        self._eos_ids = torch.tensor(sorted(eos_ids), dtype=torch.int64)
        self._pad_id = pad_id

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        num_return: int,
        sampling: SamplingParams,
        generator: Randomness = None,
    ) -> Rollout:
        """See `RolloutEngine.generate`.

        Raises:
            ValueError: If there is no prompt, a prompt is empty, `num_return` is less than 1, or
                there is not one seed for each completion.
        """
        if not prompt_ids or not all(prompt_ids):
            raise ValueError("prompt_ids holds no prompt or an empty one; each needs a token")
        if num_return < 1:
            raise ValueError(f"num_return is {num_return}; it must be at least 1")
        num_rows = len(prompt_ids) * num_return
        if isinstance(generator, CompletionSeeds) and len(generator.seeds) != num_rows:
            raise ValueError(f"generator has {len(generator.seeds)} seeds for {num_rows} rows")
        with _evaluating(self._model), fast_linears(self._model, packed_rows=num_rows):
            return self._decode(prompt_ids, num_return, sampling, generator)

    def _decode(
        self,
        prompt_ids: Sequence[Sequence[int]],
        num_return: int,
        sampling: SamplingParams,
        generator: Randomness,
    ) -> Rollout:
        device = self._model.device
        eos = self._eos_ids.to(device)
        max_new = sampling.max_new_tokens
        batch = left_pad(prompt_ids, self._pad_id, device)
        width, num_rows = batch.ids.shape[1], len(prompt_ids) * num_return

        cache = new_cache(self._model)
        logits = self._forward(batch.ids, batch.mask, batch.positions, cache)
        fan_out(cache, num_return=num_return, capacity=width + max_new)
        logits = logits.repeat_interleave(num_return, 0)
        next_position = batch.lengths.repeat_interleave(num_return)
        mask = None
        if batch.mask is not None:
            mask = batch.mask.new_ones(num_rows, width + max_new)
            mask[:, :width] = batch.mask.repeat_interleave(num_return, 0)

        ids_out = torch.full((num_rows, max_new), self._pad_id, device=device)
        mask_out = torch.zeros(num_rows, max_new, dtype=torch.bool, device=device)
        logprobs_out = torch.zeros(num_rows, max_new, device=device)
        draw_out = torch.zeros_like(logprobs_out) if sampling.truncates else logprobs_out
        stopped = torch.zeros(num_rows, dtype=torch.bool, device=device)
        rows = torch.arange(num_rows, device=device)  # where each row of the batch is written
        alive = torch.ones_like(stopped)
        uniforms, source = None, None
        if isinstance(generator, torch.Generator):
            source = generator
        elif generator is not None and not sampling.greedy:
            uniforms = generator.uniforms(max_new, device)

        for t in range(max_new):
            numbers = source if uniforms is None else uniforms[rows, t]
            tokens, logprobs, draw_logprobs = draw_tokens(logits, sampling, numbers)
            ids_out[rows, t] = torch.where(alive, tokens, self._pad_id)
            mask_out[rows, t] = alive
            logprobs_out[rows, t] = torch.where(alive, logprobs, 0.0)
            if sampling.truncates:
                draw_out[rows, t] = torch.where(alive, draw_logprobs, 0.0)
            ended = alive & torch.isin(tokens, eos)
            stopped[rows] |= ended
            alive = alive & ~ended
            num_alive = int(alive.sum())
            if num_alive == 0 or t + 1 == max_new:
                break
            if num_alive < COMPACT_BELOW * alive.numel():
                kept = alive.nonzero().squeeze(1)
                select_rows(cache, kept)
                rows, tokens, next_position = rows[kept], tokens[kept], next_position[kept]
                mask = mask[kept] if mask is not None else None
                alive = alive[kept]
            step_mask = mask[:, : width + t + 1] if mask is not None else None
            logits = self._forward(tokens[:, None], step_mask, next_position[:, None], cache)
            next_position = next_position + 1

        used = max(int(mask_out.any(0).sum()), 1)
        return Rollout(
            prompt_ids=tuple(tuple(ids) for ids in prompt_ids for _ in range(num_return)),
            completion_ids=ids_out[:, :used].contiguous(),
            completion_mask=mask_out[:, :used].contiguous(),
            logprobs=logprobs_out[:, :used].contiguous(),
            draw_logprobs=draw_out[:, :used].contiguous(),
            finish=tuple(
                FinishReason.STOP if stop else FinishReason.LENGTH for stop in stopped.tolist()
            ),
        )

    def _forward(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: object
    ) -> Tensor:
        """Logits [N, V] after the last token."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            **cache_argument(self._model, cache),
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout inside, and as before outside."""
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.train(was_training)
