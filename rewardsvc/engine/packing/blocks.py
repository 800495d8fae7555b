"""Rows in blocks of one size, or at once where that comes to the same bits.

A product of many rows is faster in one call than in blocks, and often the library sums each row's
products in the same order either way; but nobody promises it, and it may differ from one number of
rows to the next. So on CPUs it is tried, with random numbers, when rows of a new number come to a
weight: a kernel is chosen by shapes, not by what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MAX_KNOWN = 100_000
"""Answers that are remembered; a model with 100 weights has 3,200 with batches of 4,096 rows."""

_comes_to_the_same: dict[tuple[Hashable, ...], bool] = {}
"""By what is computed, shape and dtype, size of a block, and number of threads."""


def by_blocks(compute: Callable[[Tensor], Tensor], x: Tensor, rows: int, what: Hashable) -> Tensor:
    """compute(x), each row of which has the bits that it has in a block of `rows`.

    Args:
        compute: [R, N] of x [R, K]; rows do not depend on each other but for their bits.
        x: [R, K]; R is a multiple of `rows`.
        rows: Of a block.
        what: Tells functions apart: kernels, and weights, for with some (zeros) all sums are equal.
    """
    if len(x) <= rows:
        return compute(x)
    if x.device.type == "cpu":
        key = (what, x.shape, x.dtype, rows, torch.get_num_threads())
        if key not in _comes_to_the_same:
            if len(_comes_to_the_same) >= MAX_KNOWN:
                _comes_to_the_same.clear()
            _comes_to_the_same[key] = _is_the_same(compute, x, rows)
        if _comes_to_the_same[key]:
            return compute(x)
    return _blockwise(compute, x, rows)


def _blockwise(compute: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
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
