"""Rows in blocks of one size, or at once where that comes to the same bits.

A product of many rows is faster in one call than in blocks, and often the library sums each row's
products in the same order either way; but nobody promises it, and it may differ from one number of
rows to the next. So whoever asks for a new number of rows on a CPU is answered by blocks, and the
one call is made besides, to compare. From then on it is known for that number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_comes_to_the_same: dict[tuple[Hashable, ...], bool] = {}
"""By what is computed, number of rows, size of a block, and number of threads."""


def by_blocks(compute: Callable[[Tensor], Tensor], x: Tensor, rows: int, what: Hashable) -> Tensor:
    """compute(x), each row of which has the bits that it has in a block of `rows`.

    Args:
        compute: [R, N] of x [R, K]; rows do not depend on each other but for their bits.
        x: [R, K]; R is a multiple of `rows`.
        rows: Of a block.
        what: Tells functions apart: equal for those that run the same kernels.
    """
    if len(x) <= rows:
        return compute(x)
    key = (what, x.shape, x.dtype, rows, torch.get_num_threads())
    known = _comes_to_the_same.get(key) if x.device.type == "cpu" else False
    if known:
        return compute(x)
    found = torch.cat([compute(block) for block in torch.split(x, rows)])
    if known is None and bool(found.isfinite().all()):  # of other numbers it could not be told
        _comes_to_the_same[key] = _same_bits(compute(x), found)
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # As bytes: zeros of either sign are equal as numbers.
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
