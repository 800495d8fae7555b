"""Reward heads on packed sequences: one score a sequence, or one a step.

Positions come from `cu_seqlens`, never from a search for the pad token: models whose pad token is
also their end token have no such position, and a prompt may contain the pad token.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rewardsvc.kernels.checks import capturing, check_shape
from rewardsvc.kernels.tiles.rows import round_up

# T tokens of all sequences in a row, B sequences, H hidden, C scores a position, S steps.

ROW_BLOCK = 64
"""Rows that are multiplied together, always all of them: a score does not depend on the others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepScores:
    """Scores at the steps of packed sequences.

    Attributes:
        scores: float32 [S, C], in the order of the tokens.
        positions: int64 [S], each step's position in the packed tokens.
        cu_steps: int64 [B + 1]; sequence b has the steps `cu_steps[b]` to `cu_steps[b + 1]`.
    """

    scores: Tensor
    positions: Tensor
    cu_steps: Tensor


def last_token_head(
    hidden: Tensor, cu_seqlens: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The head's scores at the last token of each packed sequence.

    Args:
        hidden: [T, H], tokens of all sequences, one after the other.
        cu_seqlens: int [B + 1], where sequences begin: 0, then each end; the last is T.
        weight: [C, H].
        bias: [C].

    Returns:
        float32 [B, C], computed in float32: bfloat16 steps of 0.03 at 5 would tie rewards.

    Raises:
        ValueError: If a sequence is empty, or `cu_seqlens` does not span the tokens.
    """
    check_cu_seqlens(cu_seqlens, len(hidden))
    return row_head(hidden.index_select(0, cu_seqlens[1:].long() - 1), weight, bias)


def step_token_head(
    hidden: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    input_ids: Tensor,
    step_token_id: int,
) -> StepScores:
    """The head's scores at each step token of packed sequences, for process reward models.

    Args:
        hidden: [T, H].
        cu_seqlens: int [B + 1].
        weight: [C, H].
        bias: [C].
        input_ids: int [T].
        step_token_id: The token that ends a step. A sequence without one has no steps.

    Raises:
        ValueError: If a sequence is empty, or a shape is off.
    """
    check_shape("input_ids", input_ids, (len(hidden),))
    check_cu_seqlens(cu_seqlens, len(hidden))
    is_step_T = input_ids == step_token_id
    positions_S = is_step_T.nonzero()[:, 0]
    before = torch.cat((is_step_T.new_zeros(1, dtype=torch.int64), is_step_T.cumsum(0)))
    return StepScores(
        scores=row_head(hidden.index_select(0, positions_S), weight, bias),
        positions=positions_S,
        cu_steps=before[cu_seqlens.long()],
    )


def check_cu_seqlens(cu_seqlens: Tensor, num_tokens: int) -> None:
    """Raises ValueError unless `cu_seqlens` cuts the tokens into sequences that are not empty.

    On a GPU this is one read by the host a call, and left out while a graph is captured.
    """
    if cu_seqlens.dim() != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected [B + 1]")
    if capturing(cu_seqlens):
        return
    ends = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != num_tokens:
        raise ValueError(
            f"cu_seqlens goes from {ends[0]} to {ends[-1]}; expected 0 to {num_tokens}"
        )
    for b, (first, end) in enumerate(pairwise(ends)):
        if end <= first:
            raise ValueError(f"cu_seqlens[{b}:{b + 2}] is [{first}, {end}]: sequence {b} is empty")


def row_head(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The head's scores of rows that were gathered already.

    Args:
        hidden: [N, H], any float dtype.
        weight: [C, H].
        bias: [C].

    Returns:
        float32 [N, C], computed in float32; a row depends on no other row, bit for bit.

    Raises:
        ValueError: If the shapes do not fit each other.
    """
    check_shape("weight", weight, (len(weight), hidden.shape[1]))
    num_rows = len(hidden)
    weight_HC = weight.float().t()
    padding = (0, 0, 0, round_up(num_rows, ROW_BLOCK) - num_rows)
    rows_PH = torch.nn.functional.pad(hidden.float(), padding)
    blocks = [block @ weight_HC for block in torch.split(rows_PH, ROW_BLOCK)] if num_rows else []
    scores_NC = torch.cat([rows_PH.new_zeros(0, len(weight)), *blocks])[:num_rows]
    return scores_NC if bias is None else scores_NC + bias.float()
