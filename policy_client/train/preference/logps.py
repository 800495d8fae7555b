"""Log-probs of whole completions, with the prompt of a pair computed once.

Legend: N completions, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewardsvc.policy_client.train.data.tokenize import TokenizedPair
from rewardsvc.policy_client.train.launch import current_world
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.sequences import Sequences


class CompletionLogps:
    """Sums of log-probs of completions under one causal model."""

    def __init__(self, model: PreTrainedModel, *, pad_token_id: int) -> None:
        self._forward = PolicyForward(model)
        self._pad_id = pad_token_id

    def __call__(self, rows: Sequence[TokenizedPair]) -> Tensor:
        """float32 [N]: log π(completion | prompt) in nats, differentiable if gradients are on."""
        sequences = completion_sequences(
            rows, pad_id=self._pad_id, device=self._forward.model.device
        )
        return self._forward(sequences).logprobs.sum(1)

    @torch.no_grad()
    def in_batches(self, rows: Sequence[TokenizedPair], batch_size: int) -> Tensor:
        """The same without gradients, on the CPU; rows of like length share a batch.

        Several processes share the batches; all must call, with the same rows.
        """
        world = current_world()
        logps_N = torch.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda row: len(rows[row].input_ids))
        for start in range(world.rank * batch_size, len(order), world.size * batch_size):
            batch = order[start : start + batch_size]
            logps_N[batch] = self([rows[row] for row in batch]).float().cpu()
        return world.sum(logps_N)


def completion_sequences(
    rows: Sequence[TokenizedPair], *, pad_id: int, device: torch.device
) -> Sequences:
    """Tokenised rows in the form of the trainers' forward pass. Each has a completion."""
    completions = [row.input_ids[row.num_prompt_tokens :] for row in rows]
    lengths = tuple(map(len, completions))
    width = max(lengths)
    ids_NT = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in completions])
    mask_NT = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return Sequences(
        prompts=tuple(tuple(row.input_ids[: row.num_prompt_tokens]) for row in rows),
        completion_lengths=lengths,
        completion_ids=ids_NT.to(device),
        completion_mask=mask_NT.to(device),
        pad_id=pad_id,
    )


def completion_lengths(rows: Sequence[TokenizedPair], *, like: Tensor) -> Tensor:
    """[N]: tokens of each completion, in the dtype and on the device of `like`."""
    lengths = [len(row.input_ids) - row.num_prompt_tokens for row in rows]
    return torch.tensor(lengths, dtype=like.dtype, device=like.device)
