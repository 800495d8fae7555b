"""What passes between scorers, batcher and backends, and the two protocols that a backend fills in.

Shape letters: T tokens of a sequence, K positions of interest in it, C numbers per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemError


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobQuery:
    """How the log-probs of a sequence's next tokens are to be taken.

    Attributes:
        temperature: Logits are divided by it; finite and above 0.
        entropy: Whether the entropy is wanted as well.
    """

    temperature: float = 1.0
    entropy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """One sequence, ready for a model.

    Attributes:
        token_ids: int32 [T], at least one.
        positions: int32 [K], ascending, where the head is to be read; may be empty.
        token_type_ids: int32 [T] for encoders that tell text pairs apart, else None.
        query: Set if log-probs are wanted: of `token_ids[p + 1]` at each position p.
        order_key: Sorts like the token ids, so that sequences with a common prefix are neighbours.
            Made here, on a tokenizer's thread, because comparing bytes is all that the event loop
            has time for.
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    token_type_ids: NDArray[np.int32] | None = None
    query: LogprobQuery | None = None
    order_key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Big-endian: then the order of the bytes is that of the numbers, which are not negative.
        object.__setattr__(self, "order_key", self.token_ids.astype(">u4").tobytes())

    def __len__(self) -> int:
        return len(self.token_ids)


Output: TypeAlias = NDArray[np.float32]
"""float32 [K, C]: what the head gave at each position of one sequence."""

Answer: TypeAlias = "Output | ItemError"
"""What came of one item."""


class BatchShape(Protocol):
    """How items are put together into batches. Pure and quick: called on the event loop."""

    def cost(self, item: Encoded) -> int:
        """Tokens that the item counts in the queue and, alone, against the budget; at least 1."""

    def select(self, window: Sequence[Encoded], budget: int) -> list[int]:
        """Indices of the next batch's items among `window`, which is not empty.

        Index 0 is the most urgent item and must be chosen, even if it is over the budget (then
        alone). No index twice.
        """

    def num_computed_tokens(self, batch: Sequence[Encoded]) -> int:
        """Tokens that go through the model for this batch; at most the budget, or one item's."""


class Backend(Protocol):
    """A model on a device. Everything but `shape` is called on the device's thread alone."""

    @property
    def shape(self) -> BatchShape:
        """How batches for this backend are put together."""

    def run(self, batch: Sequence[Encoded]) -> list[Output]:
        """One output per item, in order. May raise; the batch is then split and run again."""

    def recover(self) -> None:
        """Called after `run` raised, before the next try: gives cached memory back."""

    def close(self) -> None:
        """Frees the model."""
