"""What a rollout is, and what makes one.

Legend: N completions, T tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from rewardsvc.policy_client.train.online.sampling import Randomness, SamplingParams


class FinishReason(StrEnum):
    """Why a completion ended.

    STOP: With an end-of-sequence token.
    LENGTH: At the limit.
    ABORT: The engine gave up on it. What there is of it may be empty, and has no reward.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Completions of some prompts, all on the policy's device.

    For two prompts with two completions each, rows 0 and 1 belong to the first prompt:

        prompt_ids         [[5, 6], [5, 6], [7], [7]]
        completion_ids     [[8, 1], [8, 8], [1, 0], [9, 1]]       1 ends a sequence, 0 pads
        completion_mask    [[T, T], [T, T], [T, F], [T, T]]
        finish             stop, length, stop, stop

    Attributes:
        prompt_ids: N lists of token ids, without padding.
        completion_ids: int64 [N, T], right-padded; the end-of-sequence token is part of it.
        completion_mask: bool [N, T]; True for tokens that the policy sampled.
        logprobs: float32 [N, T], of the tokens under the policy at its temperature; 0 where masked.
        draw_logprobs: float32 [N, T], under the distribution that they were drawn from, which is
            another one with top-k or top-p; 0 where masked.
        finish: Why each completion ended.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    completion_ids: Tensor
    completion_mask: Tensor
    logprobs: Tensor
    draw_logprobs: Tensor
    finish: tuple[FinishReason, ...]

    @property
    def num_completions(self) -> int:
        """N."""
        return len(self.prompt_ids)

    def select(self, rows: Sequence[int]) -> Rollout:
        """Some rows; the width T stays."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.completion_ids.device)
        return Rollout(
            prompt_ids=tuple(self.prompt_ids[row] for row in rows),
            completion_ids=self.completion_ids[index],
            completion_mask=self.completion_mask[index],
            logprobs=self.logprobs[index],
            draw_logprobs=self.draw_logprobs[index],
            finish=tuple(self.finish[row] for row in rows),
        )

    @property
    def aborted(self) -> Tensor:
        """bool [N], on the rollout's device."""
        return torch.tensor(
            [reason is FinishReason.ABORT for reason in self.finish],
            device=self.completion_ids.device,
        )

    def completion_lists(self) -> list[list[int]]:
        """Each completion's token ids, without padding."""
        ids = self.completion_ids.tolist()
        lengths = self.completion_mask.sum(1).tolist()
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]


def concat_rollouts(parts: Sequence[Rollout], *, pad_id: int) -> Rollout:
    """One rollout of several, in order; each is padded to the longest completion.

    Raises:
        ValueError: If there are no parts.
    """
    if not parts:
        raise ValueError("parts is empty; there is nothing to put together")
    width = max(part.completion_ids.shape[1] for part in parts)

    def stack(name: str, fill: float | bool) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        return torch.cat(
            [
                torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=fill)
                for tensor in tensors
            ]
        )

    return Rollout(
        prompt_ids=tuple(ids for part in parts for ids in part.prompt_ids),
        completion_ids=stack("completion_ids", pad_id),
        completion_mask=stack("completion_mask", False),
        logprobs=stack("logprobs", 0.0),
        draw_logprobs=stack("draw_logprobs", 0.0),
        finish=tuple(reason for part in parts for reason in part.finish),
    )


class RolloutEngine(Protocol):
    """Makes completions with the policy as it is now."""

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        num_return: int,
        sampling: SamplingParams,
        generator: Randomness = None,
    ) -> Rollout:
        """`num_return` completions of each prompt, those of one prompt next to each other.

        Args:
            prompt_ids: At least one token each.
            num_return: Completions of each prompt, at least 1.
            sampling: How to draw.
            generator: Source of randomness, on the policy's device. Equal states give equal
                rollouts. With several processes it is a `CompletionSeeds`, which says what each
                completion is to be drawn with.
        """
        ...
