"""What the update learns from, and how it travels through a checkpoint.

Legend: N completions, T tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rewardsvc.policy_client.train.online.sequences import Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """One step's rollouts, judged.

    Attributes:
        sequences: Prompts and completions, N rows.
        groups: int64 [N], the number of each row's group.
        mask: bool [N, T]: tokens to learn from: of completions that have a reward and a baseline.
        old_logprobs: float32 [N, T], under the policy that made the rollout.
        sampler_logprobs: float32 [N, T], as the rollout engine reported them.
        advantages: float32 [N, T]; 0 where not `mask`.
        ref_logprobs: float32 [N, T], under the reference; None without one.
        returns: float32 [N, T], what the critic should say; None without a critic.
        old_values: float32 [N, T], what it said; None without a critic.
        mismatch: float32 [N, T], policy over sampler before any bound; None where the policy's own
            log-probs were not computed before the update.
    """

    sequences: Sequences
    groups: Tensor
    mask: Tensor
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    returns: Tensor | None = None
    old_values: Tensor | None = None
    mismatch: Tensor | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as tensors by name, for `from_tensors`."""
        lengths = [len(prompt) for prompt in self.sequences.prompts]
        flat = [token for prompt in self.sequences.prompts for token in prompt]
        tensors = {
            "prompt_lengths": torch.tensor(lengths, dtype=torch.int64),
            "prompt_ids": torch.tensor(flat, dtype=torch.int64),
            "completion_ids": self.sequences.completion_ids,
            "completion_mask": self.sequences.completion_mask,
            "pad_id": torch.tensor(self.sequences.pad_id),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Experience:
        """The experience that `to_tensors` was called on.

        Raises:
            KeyError: If a tensor is missing.
        """
        lengths = tensors["prompt_lengths"].tolist()
        prompts = torch.split(tensors["prompt_ids"], lengths)
        mask = tensors["completion_mask"].to(device)
        sequences = Sequences(
            prompts=tuple(tuple(prompt.tolist()) for prompt in prompts),
            completion_lengths=tuple(mask.sum(1).tolist()),
            completion_ids=tensors["completion_ids"].to(device),
            completion_mask=mask,
            pad_id=int(tensors["pad_id"]),
        )
        own = {
            field.name: tensors[field.name].to(device)
            for field in fields(cls)
            if field.name in tensors
        }
        return cls(sequences=sequences, **own)
