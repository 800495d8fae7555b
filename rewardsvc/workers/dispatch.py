"""How a call's samples are divided among workers.

Three wishes, in this order: no worker is idle while another has much to do; completions of one
prompt stay together, for the worker computes their common prefix once; and a prompt goes to the
worker that it went to before, where identical samples are found in flight or in the cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from rewardsvc.scoring.tokens import TokenSequence
from rewardsvc.scoring.types import Message, Sample, Text
from rewardsvc.workers.process import Worker

SPLIT_ABOVE = 32
"""Completions of one prompt that stay together whatever the load; more may be divided."""

AFFINITY_SLACK = 32_768
"""How much more, in characters, a prompt's usual worker may have to do than the least loaded."""

OVERHEAD = 16
"""Added to each sample's cost: special tokens, and what every sample costs."""


@dataclass(slots=True, eq=False)
class Part:
    """Samples of one call that go to one worker.

    Attributes:
        worker: Which.
        indices: Their places in the call.
        cost: Their cost.
    """

    worker: Worker
    indices: list[int] = field(default_factory=list)
    cost: int = 0


def divide(
    items: Sequence[Sample] | Sequence[TokenSequence],
    workers: Sequence[Worker],
    *,
    split_groups: bool = True,
) -> list[Part]:
    """Parts of a call.

    Args:
        items: What is asked.
        workers: Those that can take some, at least one.
        split_groups: Whether completions of one prompt may go to several workers. Not where they
            are judged against each other.
    """
    if len(workers) == 1:
        return [Part(workers[0], [*range(len(items))], sum(map(_cost, items)))]
    groups: dict[Hashable, list[int]] = {}
    every: Sequence[Sample | TokenSequence] = items
    for index, item in enumerate(every):
        groups.setdefault(_prompt(item), []).append(index)
    costs = [_cost(item) for item in items]
    parts = {worker: Part(worker) for worker in workers}

    def load(worker: Worker) -> int:
        return worker.outstanding + parts[worker].cost

    for prompt, members in groups.items():
        size = max(SPLIT_ABOVE, -(-len(members) // len(workers)))
        if not split_groups:
            size = len(members)
        usual = workers[crc32(repr(prompt).encode()) % len(workers)]
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            least = min(workers, key=load)
            chosen = usual if load(usual) <= load(least) + AFFINITY_SLACK else least
            if len(members) > size:
                chosen = least  # it is divided: then evenly
            parts[chosen].indices += chunk
            parts[chosen].cost += sum(costs[i] for i in chunk)
    return [part for part in parts.values() if part.indices]


def _prompt(item: Sample | TokenSequence) -> Hashable:
    if isinstance(item, Sample):
        return item.prompt
    return item.prompt_ids.tobytes()


def _cost(item: Sample | TokenSequence) -> int:
    if isinstance(item, Sample):
        return OVERHEAD + _size(item.prompt) + _size(item.completion)
    return OVERHEAD + len(item.prompt_ids) + len(item.completion_ids)


def _size(text: Text) -> int:
    if text and not isinstance(text, str) and isinstance(text[0], Message):
        return sum(len(m.content) for m in text if isinstance(m, Message))
    return len(text)
