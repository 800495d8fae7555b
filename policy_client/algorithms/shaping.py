"""Rewards for length alone, and which groups are worth learning from (both DAPO's).

Legend: N completions; P prompts, G completions of each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_overlong_penalty(lengths_N: Tensor, *, max_length: int, cache_length: int) -> Tensor:
    """0 up to max_length - cache_length tokens, then falling evenly to -1 at max_length.

    R(n) = 0                                        if n <= L_max - L_cache
         = ((L_max - L_cache) - n) / L_cache        up to L_max
         = -1                                       beyond it.

    Args:
        lengths_N: [N], tokens of each completion.
        max_length: L_max, at least 1.
        cache_length: L_cache, from 1 to `max_length`.

    Returns:
        float32 [N], in [-1, 0], or of the floating dtype of `lengths_N`.

    Raises:
        ValueError: If `cache_length` is out of range.

    Source: Yu et al. 2025, "DAPO", equation 13 (arXiv:2503.14476).
    """
    if not 1 <= cache_length <= max_length:
        raise ValueError(
            f"cache_length is {cache_length}; it must be from 1 to max_length, {max_length}"
        )
    lengths_N = lengths_N if lengths_N.is_floating_point() else lengths_N.float()
    return ((max_length - cache_length - lengths_N) / cache_length).clamp(-1.0, 0.0)


def informative_groups(accuracy_PG: Tensor) -> Tensor:
    """bool [P]: groups in which some completions are better than others: 0 < #right < G.

    Args:
        accuracy_PG: float [P, G], the verifier's own verdict; NaN where there is none. Give it
            before any shaping: a penalty for length makes a group of failures look informative,
            and what is then learned is the penalty.

    Source: Yu et al. 2025, "DAPO", equation 11 (arXiv:2503.14476). With graded rewards "right" is
    not defined; a group counts if not all of its rewards are equal, which for 0 and 1 is the same.
    """
    present_PG = accuracy_PG.isfinite()
    infinity = float("inf")
    low_P = torch.where(present_PG, accuracy_PG, infinity).amin(1)
    high_P = torch.where(present_PG, accuracy_PG, -infinity).amax(1)
    return low_P < high_P
