"""Top-k by keys: one int64 per logit that orders by value first and by lower id second.

The upper half holds the float32 bits of the logit, flipped so that they order as integers; the
lower half the complement of the id. No two keys of a row are equal, so the k largest are one set in
one order whatever computes them: ties go to the lowest id on every backend and in every batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_TOPK = 64
ID_MASK = 0xFFFFFFFF
_SIGN_FLIP = 0x7FFFFFFF


def _flip(bits: Tensor) -> Tensor:
    """Maps float32 bits to integers in the order of the floats, and back."""
    return bits ^ ((bits >> 31) & _SIGN_FLIP)


def pack_keys(y_RW: Tensor, start: int) -> Tensor:
    """int64 keys [R, W] of float32 values in columns `[start, start + W)`."""
    # + 0.0 turns -0.0 into 0.0, which is its equal and must not order below it.
    order = _flip((y_RW.float() + 0.0).view(torch.int32)).to(torch.int64)
    ids_W = torch.arange(start, start + y_RW.shape[-1], device=y_RW.device)
    return (order << 32) | (ID_MASK - ids_W)


def unpack_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Values (float32) and ids (int64) of keys, in their shape."""
    ids = ID_MASK - (keys & ID_MASK)
    return _flip((keys >> 32).to(torch.int32)).view(torch.float32), ids


def new_keys(num_rows: int, k: int, device: torch.device) -> Tensor:
    """Running keys [N, k] below that of every logit, each different from its neighbours."""
    lowest_K = torch.iinfo(torch.int64).min + torch.arange(k, device=device)
    return lowest_K.repeat(num_rows, 1)


def largest_keys(keys: Tensor, k: int) -> Tensor:
    """The k largest keys of each row, largest first."""
    return keys.topk(k, dim=-1).values
