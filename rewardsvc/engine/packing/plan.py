"""What attention has to know of a packed batch, and how it gets to know it.

Models hand attention functions what transformers puts together for them, and that is not the same
for all. So the plan of the batch that is being computed belongs to the thread that computes.

Shape letters: B sequences, T packed tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rewardsvc.engine.packing.prefixes import Node


class PackingError(RuntimeError):
    """The model asks for something that packed batches do not have."""


@dataclass(slots=True, kw_only=True, eq=False)
class Plan:
    """A packed batch, as attention sees it.

    Attributes:
        nodes: See `PrefixTree`.
        num_rows: T, the tokens that attention gets.
        positions: int64 [T] on the device: each token's place in its sequences.
        block_rows: Set if results must not depend on the batch, bit for bit: matrix products run in
            blocks of so many rows, which `num_rows` is a multiple of.
        fused: Whether the device's own kernels for packed batches may be used.
        gather: int64 [B, longest]: the row of each token of each sequence, filled up with 0, for
            models whose own heads are to see one sequence a row; else None.
        num_calls: Attention calls so far.
        saw_bidirectional: Whether one of them was without causal mask.
        memo: What attention functions keep from layer to layer.
    """

    nodes: list[Node]
    num_rows: int
    positions: Tensor
    block_rows: int | None = None
    fused: bool = True
    gather: Tensor | None = None
    num_calls: int = 0
    saw_bidirectional: bool = False
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def canonical(self) -> bool:
        """Whether results must not depend on the batch, bit for bit."""
        return self.block_rows is not None

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(node.position_stop for node in self.nodes)

    @property
    def is_shared(self) -> bool:
        """Whether a token belongs to more than one sequence."""
        return any(node.parent is not None for node in self.nodes)


class _Active(threading.local):
    plan: Plan | None = None


_active = _Active()


@contextmanager
def active(plan: Plan) -> Iterator[None]:
    """`plan` is what the models of this thread compute inside the block."""
    _active.plan = plan
    try:
        yield
    finally:
        _active.plan = None


def active_plan() -> Plan | None:
    """The plan of the batch that this thread computes, if it does."""
    return _active.plan
