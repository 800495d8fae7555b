"""Sequences to try a packed backend with, and what is asked of the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsvc.engine.packing.canonical import BLOCK
from rewardsvc.engine.packing.plan import PackingError
from rewardsvc.engine.types import Backend, Encoded, LogprobQuery, Output

PREFIX, LONGEST = 12, 24
"""Tokens of the common prefix, and of the longest sequence."""

TOLERANCE, COARSE_TOLERANCE = 1e-4, 5e-2
"""Largest difference relative to the largest number: rounding of 32-bit and of 16-bit numbers. A
token that sees what it must not see changes numbers by about as much as they are."""


def probe_items(vocab_size: int, max_length: int, *, longest: int = LONGEST) -> list[Encoded]:
    """Sequences that share a prefix, are one, or neither, each read at nearly all positions.

    Args:
        vocab_size: Of the model. Tokens from its middle are taken: special ones are at the ends.
        max_length: Tokens that the model takes.
        longest: Tokens of the longest.
    """
    rng = np.random.default_rng(0)

    def tokens(length: int) -> NDArray[np.int32]:
        return rng.integers(vocab_size // 4, 3 * vocab_size // 4 + 1, length).astype(np.int32)

    prefix = tokens(PREFIX)
    sequences = [
        np.concatenate([prefix, tokens(longest - PREFIX)]),
        np.concatenate([prefix, tokens(PREFIX // 2)]),
        prefix[: PREFIX - 2],
        tokens(longest // 2 + 1),
        np.concatenate([prefix, tokens(longest // 2)]),
    ]
    return [
        Encoded(
            token_ids=ids[:max_length],
            # Not at the last: a log-prob needs a token behind it.
            positions=np.arange(max(1, len(ids[:max_length]) - 1), dtype=np.int32),
            query=LogprobQuery(entropy=True),
        )
        for ids in sequences
    ]


def check_agreement(
    found: Sequence[Output], expected: Sequence[Output], dtype: torch.dtype
) -> None:
    """Compares packed with plain numbers.

    Raises:
        PackingError: If they differ by more than rounding.
    """
    tolerance = TOLERANCE if dtype in (torch.float32, torch.float64) else COARSE_TOLERANCE
    scale = max(float(np.abs(part).max()) for part in expected)
    worst = max(
        float(np.abs(ours - plain).max()) for ours, plain in zip(found, expected, strict=True)
    )
    if not worst <= tolerance * scale:  # NaN is not
        raise PackingError(
            f"packed, its numbers differ by {worst:.1e} (they are up to {scale:.1e})"
        )


def check_canonical(backend: Backend, vocab_size: int, max_length: int) -> None:
    """Computes sequences in several batches and orders.

    Raises:
        PackingError: If a bit of a number depends on the batch.
    """
    items = probe_items(vocab_size, max_length, longest=2 * BLOCK + PREFIX)
    alone = [backend.run([item])[0] for item in items]
    last = len(items) - 1
    for order in ([*range(len(items))], [*range(last, -1, -1)], [1, 3], [last, 2, 0]):
        found = backend.run([items[i] for i in order])
        for index, numbers in zip(order, found, strict=True):
            if not np.array_equal(numbers, alone[index]):
                raise PackingError("its numbers depend on the batch even with blocks of one shape")
