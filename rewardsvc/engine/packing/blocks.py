"""Rows in blocks of one size, or many at once where that comes to the same bits.

A product of many rows is faster in one call than in blocks, and often the library sums each row's
products in the same order either way; but nobody promises it, and it may differ from one number of
rows to the next. So on CPUs it is tried, with random numbers, before rows of a new number come to a
weight together: a kernel is chosen by shapes, not by what is in them.

A trial takes twice as long as the product, and batches come in two dozen numbers of blocks. So at
first the blocks of a batch are put together by powers of two, of which there are few; a number that
keeps coming back is tried as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MOST_BLOCKS = 16
"""The largest power of two that blocks are put together by."""

TRIED_AFTER = 8
"""How often a number of blocks comes to a weight before it is tried as a whole."""

MAX_KNOWN = 100_000
"""Answers that are remembered; a model with 100 weights has 3,200 with batches of 4,096 rows."""

_comes_to_the_same: dict[tuple[Hashable, ...], bool] = {}
"""By what is computed, shape and dtype, size of a block, and number of threads."""

_num_seen: dict[tuple[Hashable, ...], int] = {}
"""How often there were so many rows; by the same."""


def by_blocks(compute: Callable[[Tensor], Tensor], x: Tensor, rows: int, what: Hashable) -> Tensor:
    """compute(x), each row of which has the bits that it has in a block of `rows`.

    Args:
        compute: [R, N] of x [R, K]; rows do not depend on each other but for their bits.
        x: [R, K]; R is a multiple of `rows`.
        rows: Of a block.
        what: Tells functions apart: kernels, and weights, for with some (zeros) all sums are equal.
    """
    if len(x) <= rows or x.device.type != "cpu":
        return _blockwise(compute, x, rows)
    key = (what, x.shape[1:], x.dtype, rows, torch.get_num_threads())
    sizes = _sizes(len(x) // rows, rows)
    whole = (len(x), *key)
    if len(sizes) > 1 and _come_often(whole) and _is_known_the_same(compute, x, rows, whole):
        return compute(x)
    parts = [
        compute(part)
        if len(part) <= rows or _is_known_the_same(compute, part, rows, (len(part), *key))
        else _blockwise(compute, part, rows)
        for part in torch.split(x, sizes)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _sizes(num_blocks: int, rows: int) -> list[int]:
    """Rows of the parts that so many blocks are put together to: powers of two, largest first."""
    sizes = [MOST_BLOCKS * rows] * (num_blocks // MOST_BLOCKS)
    powers = (1 << bit for bit in reversed(range(MOST_BLOCKS.bit_length() - 1)))
    return sizes + [power * rows for power in powers if num_blocks & power]


def _come_often(key: tuple[Hashable, ...]) -> bool:
    if len(_num_seen) >= MAX_KNOWN:
        _num_seen.clear()
    _num_seen[key] = num = _num_seen.get(key, 0) + 1
    return num > TRIED_AFTER


def _is_known_the_same(
    compute: Callable[[Tensor], Tensor], x: Tensor, rows: int, key: tuple[Hashable, ...]
) -> bool:
    if key not in _comes_to_the_same:
        if len(_comes_to_the_same) >= MAX_KNOWN:
            _comes_to_the_same.clear()
        _comes_to_the_same[key] = _is_the_same(compute, x, rows)
    return _comes_to_the_same[key]


def _blockwise(compute: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    if len(x) <= rows:
        return compute(x)
    return torch.cat([compute(block) for block in torch.split(x, rows)])


def _is_the_same(compute: Callable[[Tensor], Tensor], like: Tensor, rows: int) -> bool:
    generator = torch.Generator().manual_seed(len(like))
    trial = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    # As bytes: zeros of either sign are equal as numbers.
    at_once, wanted = (
        found.contiguous().view(torch.uint8)
        for found in (compute(trial), _blockwise(compute, trial, rows))
    )
    return torch.equal(at_once, wanted)
