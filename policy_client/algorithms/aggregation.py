"""How the losses of tokens become one number.

An aggregation is a weight per token: the loss is the weighted sum. The weights come from the mask
of a *whole* minibatch, so cutting it into micro-batches afterwards changes nothing: the losses of
the micro-batches add up to the minibatch's, whatever their lengths. Averaging each micro-batch
instead, and then the averages, would give short completions another weight with every cut.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Aggregation(StrEnum):
    """The weight of a token's loss; n_i is the number of tokens of its sequence.

    * TOKEN_MEAN: 1 / sum of n_i: every token counts the same (DAPO).
    * SEQ_MEAN_TOKEN_MEAN: 1 / (N n_i): every sequence counts the same (GRPO's paper).
    * SEQ_MEAN_TOKEN_SUM: 1 / N: longer sequences count more.
    * SEQ_MEAN_TOKEN_SUM_NORM: 1 / (N L) with a constant L (Dr. GRPO).
    * GROUP_MEAN_TOKEN_MEAN: 1 / (P m_p), where m_p is the number of tokens of the sequence's whole
      group and P that of groups: every prompt counts the same (DAPO's equation as it stands).
    """

    TOKEN_MEAN = "token-mean"  # noqa: S105 - no secret
    SEQ_MEAN_TOKEN_MEAN = "seq-mean-token-mean"  # noqa: S105 - no secret
    SEQ_MEAN_TOKEN_SUM = "seq-mean-token-sum"  # noqa: S105 - no secret
    SEQ_MEAN_TOKEN_SUM_NORM = "seq-mean-token-sum-norm"  # noqa: S105 - no secret
    GROUP_MEAN_TOKEN_MEAN = "group-mean-token-mean"  # noqa: S105 - no secret


def token_weights(
    mask_NT: Tensor,
    mode: Aggregation,
    *,
    norm_length: int | None = None,
    groups_N: Tensor | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """The weight of each token's loss: [N, T] of `dtype`, 0 where masked.

    N counts the sequences with at least one unmasked token: one without any has no loss, and does
    not make the others' smaller.

    Args:
        mask_NT: bool [N, T], of the whole minibatch.
        mode: Which aggregation.
        norm_length: L of SEQ_MEAN_TOKEN_SUM_NORM: the longest completion that could be sampled.
        groups_N: int64 [N], the number of each sequence's group, for GROUP_MEAN_TOKEN_MEAN.
        dtype: Floating dtype of the result.

    Raises:
        ValueError: If SEQ_MEAN_TOKEN_SUM_NORM comes without a positive `norm_length`, or
            GROUP_MEAN_TOKEN_MEAN without `groups_N`.

    Source: Yu et al. 2025, "DAPO", section 3.3 and equation 8 (arXiv:2503.14476); Shao et al. 2024,
    equation 3 (arXiv:2402.03300); Liu et al. 2025, section 3.1 (arXiv:2503.20783).
    """
    ones_NT = mask_NT.to(dtype)
    lengths_N1 = mask_NT.sum(1, keepdim=True)
    if mode is Aggregation.TOKEN_MEAN:
        return ones_NT / lengths_N1.sum().clamp(min=1)
    if mode is Aggregation.GROUP_MEAN_TOKEN_MEAN:
        if groups_N is None:
            raise ValueError(f"groups_N is None; {mode} needs to know which sequences are a group")
        _, group_N = torch.unique(groups_N, return_inverse=True)
        tokens_P = torch.zeros_like(group_N).index_add_(0, group_N, lengths_N1.squeeze(1))
        num_groups = (tokens_P > 0).sum().clamp(min=1)
        return ones_NT / tokens_P[group_N][:, None].clamp(min=1) / num_groups
    per_sequence_NT = ones_NT / (lengths_N1 > 0).sum().clamp(min=1)
    if mode is Aggregation.SEQ_MEAN_TOKEN_MEAN:
        return per_sequence_NT / lengths_N1.clamp(min=1)
    if mode is Aggregation.SEQ_MEAN_TOKEN_SUM:
        return per_sequence_NT
    if norm_length is None or norm_length < 1:
        raise ValueError(f"norm_length is {norm_length}; {mode} needs a positive constant length")
    return per_sequence_NT / norm_length


def weighted_sum(loss_NT: Tensor, weights_NT: Tensor) -> Tensor:
    """The sum of weight times loss, where the weight is not 0: a scalar."""
    used_NT = weights_NT != 0
    return (torch.where(used_NT, loss_NT, 0.0) * weights_NT).sum()
