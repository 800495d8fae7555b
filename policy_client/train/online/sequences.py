"""Prompts and completions as training sees them, and how they are cut into batches.

Legend: N sequences, T tokens of the longest completion, M completion tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.online.rollout import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Completions and what they complete.

    Attributes:
        prompts: Token ids of each row's prompt; rows of a group repeat it.
        completion_lengths: Tokens of each row's completion; 0 for one that an engine aborted.
        completion_ids: int64 [N, T], right-padded.
        completion_mask: bool [N, T]; True for tokens of the completion.
        pad_id: Stands where there is no token.
    """

    prompts: tuple[tuple[int, ...], ...]
    completion_lengths: tuple[int, ...]
    completion_ids: Tensor
    completion_mask: Tensor
    pad_id: int

    @classmethod
    def of(cls, rollout: Rollout, *, pad_id: int) -> Sequences:
        """The sequences of a rollout, in its order and on its device."""
        return cls(
            prompts=rollout.prompt_ids,
            completion_lengths=tuple(rollout.completion_mask.sum(1).tolist()),
            completion_ids=rollout.completion_ids,
            completion_mask=rollout.completion_mask,
            pad_id=pad_id,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts, repeated ones too, and of all completions."""
        return sum(map(len, self.prompts)) + sum(self.completion_lengths)

    def select(self, rows: Sequence[int]) -> Sequences:
        """Some rows; the width T stays."""
        index = torch.tensor(rows, device=self.completion_ids.device)
        return Sequences(
            prompts=tuple(self.prompts[row] for row in rows),
            completion_lengths=tuple(self.completion_lengths[row] for row in rows),
            completion_ids=self.completion_ids[index],
            completion_mask=self.completion_mask[index],
            pad_id=self.pad_id,
        )

    def completion_tokens(self) -> Tensor:
        """int64 [M]: the completion tokens, row after row."""
        return self.completion_ids[self.completion_mask]

    def scatter(self, values_M: Tensor) -> Tensor:
        """[N, T] with a value for each completion token, and 0 where there is none."""
        zeros_NT = values_M.new_zeros(self.completion_mask.shape)
        return zeros_NT.masked_scatter(self.completion_mask, values_M)

    def micro_batches(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[list[int]]:
        """Cuts rows into batches that cost at most `max_tokens` each; at least one row each.

        A batch costs its different prompts and its completions, both padded to the longest. Rows of
        one prompt together spare prompts; rows of like length together spare padding. Which is
        better depends on the data, so both are tried.

        Args:
            max_tokens: A single row that costs more is a batch of its own.
            rows: Which rows; all that have a completion if None.
        """
        lengths, prompts = self.completion_lengths, self.prompts
        rows = [row for row, length in enumerate(lengths) if length] if rows is None else rows
        orders = (
            sorted(rows, key=lambda row: (len(prompts[row]), prompts[row], lengths[row])),
            sorted(rows, key=lambda row: (lengths[row], len(prompts[row]), prompts[row])),
        )
        cuts = [self._cut(order, max_tokens) for order in orders]
        return min(cuts, key=lambda cut: sum(self.cost(batch) for batch in cut))

    def dealt(
        self, max_tokens: int, world: World, rows: Sequence[int] | None = None
    ) -> list[list[list[int]]]:
        """Micro-batches of each process, by rank; the same answer in all of them.

        Batches are made smaller than `max_tokens` where that gives every process something to do.
        """
        if world.size > 1:
            every = self.micro_batches(max_tokens, rows)
            rounds = -(-len(every) // world.size)
            total = sum(map(self.cost, every))
            even = -(-total // max(rounds * world.size, 1))
            max_tokens = min(max_tokens, even)
        return world.deal(self.micro_batches(max_tokens, rows), self.cost)

    def cost(self, rows: Sequence[int]) -> int:
        """Padded tokens that a forward pass over these rows computes."""
        prompts = {self.prompts[row] for row in rows}
        longest = max(self.completion_lengths[row] for row in rows)
        return len(prompts) * max(map(len, prompts)) + len(rows) * longest

    def _cut(self, order: Sequence[int], max_tokens: int) -> list[list[int]]:
        batches: list[list[int]] = []
        seen: set[tuple[int, ...]] = set()
        prompt_width = completion_width = 0
        for row in order:
            prompt, length = self.prompts[row], self.completion_lengths[row]
            wider = max(prompt_width, len(prompt)), max(completion_width, length)
            num_prompts = len(seen) + (prompt not in seen)
            num_rows = len(batches[-1]) + 1 if batches else 1
            if not batches or num_prompts * wider[0] + num_rows * wider[1] > max_tokens:
                batches.append([])
                seen = set()
                wider = len(prompt), length
            batches[-1].append(row)
            seen.add(prompt)
            prompt_width, completion_width = wider
        return batches
