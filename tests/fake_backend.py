"""A backend without a model, for tests of the batcher: an item's output is the sum of its ids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from rewardsvc.engine.shape import PaddedShape
from rewardsvc.engine.types import Encoded, Output

Fault = Callable[[Sequence[Encoded]], None]


def item(length: int, first: int = 0) -> Encoded:
    """A sequence of `length` tokens that starts with `first`; the rest are ones."""
    ids = np.ones(length, np.int32)
    ids[0] = first
    return Encoded(token_ids=ids, positions=np.asarray([length - 1], np.int32))


class FakeBackend:
    """Records its batches; can be held in the middle of one, and made to fail.

    Attributes:
        batches: First tokens of each batch that ran, in order.
        costs: Computed tokens of each.
        threads: Names of the threads that it ran on.
        gate: While cleared, `run` waits; give up after a minute.
        running: Set when `run` has begun.
        is_closed: Whether `close` was called.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.shape = PaddedShape()
        self.batches: list[list[int]] = []
        self.costs: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.is_closed = False
        self.num_recoveries = 0
        self._fault = fault

    def run(self, batch: Sequence[Encoded]) -> list[Output]:
        self.batches.append([int(one.token_ids[0]) for one in batch])
        self.costs.append(self.shape.num_computed_tokens(batch))
        self.threads.add(threading.current_thread().name)
        self.running.set()
        assert self.gate.wait(60), "the test left the gate closed"
        if self._fault is not None:
            self._fault(batch)
        return [one.token_ids.sum(dtype=np.float32).reshape(1, 1) for one in batch]

    def recover(self) -> None:
        self.num_recoveries += 1

    def close(self) -> None:
        self.is_closed = True
