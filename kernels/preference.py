"""`fused_linear_preference`: sequence log-probs of pairs, straight from hidden states.

What DPO, IPO, SimPO, ORPO and KTO need of a model is a number a sequence. With a vocabulary of
150,000, the logits of a pair of 2,000 tokens are 1.2 GB in bfloat16 and several times that in their
backward pass; here they never exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewardsvc.kernels.heads import check_cu_seqlens
from rewardsvc.kernels.linear.api import linear_logprob

# T tokens of all sequences in a row, P pairs, H hidden, V vocabulary.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferenceLogps:
    """Log-probs of pairs; float32 [P], differentiable.

    Attributes:
        chosen: Sum over the tokens that count, or their mean if so asked.
        rejected: Likewise.
        chosen_tokens: How many tokens counted.
        rejected_tokens: Likewise.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


def fused_linear_preference(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    *,
    average: bool = False,
    ignore_index: int = -100,
    **options: Any,
) -> PreferenceLogps:
    """Sequence log-probs of chosen and rejected completions.

    Args:
        hidden: [T, H], packed: all chosen sequences, then all rejected in the same order.
        weight: [V, H].
        ids: int [T], the token that each position predicts; `ignore_index` on prompts, and on each
            sequence's last position.
        cu_seqlens: int [2 P + 1], where sequences begin.
        average: Means over tokens instead of sums (SimPO, ORPO). A sequence in which nothing counts
            gets 0 either way.
        ignore_index: Marks tokens that do not count.
        **options: Further options of `linear_logprob`: bias, temperature, softcap, workspace_mib …

    Raises:
        ValueError: If the number of sequences is odd, or an argument is malformed.
    """
    check_cu_seqlens(cu_seqlens, len(hidden))
    num_sequences = len(cu_seqlens) - 1
    if num_sequences % 2:
        raise ValueError(f"cu_seqlens has {num_sequences} sequences; expected chosen and rejected")
    stats = linear_logprob(hidden, weight, ids, ignore_index=ignore_index, **options)
    lengths = cu_seqlens.long().diff()
    # Segment by segment in order, and not index_add_, whose order on a GPU changes between runs.
    sums = torch.segment_reduce(stats.logp, "sum", lengths=lengths, unsafe=True)
    counts = torch.segment_reduce(
        (ids != ignore_index).to(stats.logp.dtype), "sum", lengths=lengths, unsafe=True
    )
    values = sums / counts.clamp(min=1) if average else sums
    chosen, rejected = values.chunk(2) if num_sequences else (values, values)
    chosen_tokens, rejected_tokens = counts.chunk(2) if num_sequences else (counts, counts)
    return PreferenceLogps(
        chosen=chosen,
        rejected=rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
    )
