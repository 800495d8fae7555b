"""Prompts of different lengths as one tensor.

Legend: N prompts, W tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedPrompts:
    """Prompts padded on the left, so that all of them end where a completion begins.

    Attributes:
        ids: int64 [N, W].
        lengths: int64 [N].
        mask: bool [N, W], True at tokens; None if all of it is, which lets attention take its
            fastest path.
        positions: int64 [N, W], from 0 at each prompt's first token; None without a mask.
    """

    ids: Tensor
    lengths: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> PaddedPrompts:
    """`prompts`, at least one, as tensors on `device`."""
    width = max(map(len, prompts))
    ids = torch.tensor(
        [[pad_id] * (width - len(row)) + list(row) for row in prompts], device=device
    )
    lengths = torch.tensor([len(row) for row in prompts], device=device)
    if min(map(len, prompts)) == width:
        return PaddedPrompts(ids=ids, lengths=lengths)
    start = (width - lengths)[:, None]
    column = torch.arange(width, device=device)[None]
    return PaddedPrompts(
        ids=ids,
        lengths=lengths,
        mask=column >= start,
        positions=(column - start).clamp(min=0),
    )
