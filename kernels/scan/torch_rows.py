"""The recurrences in plain torch: a loop over time on rows that are contiguous in the batch."""

from __future__ import annotations

import torch
from torch import Tensor

# B sequences, T tokens.


def discounted_scan_rows(
    x_BT: Tensor, mask_BT: Tensor, initial_B: Tensor, *, discount: float, reverse: bool
) -> Tensor:
    """y_t = x_t + discount * y of the next kept t; 0 where masked. `reverse`: next means later."""
    x_TB = torch.where(mask_BT, x_BT, 0.0).t().contiguous()
    keep_TB = mask_BT.t().contiguous()
    out_TB = torch.zeros_like(x_TB)
    carry_B = initial_B
    num_tokens = len(x_TB)
    for t in range(num_tokens - 1, -1, -1) if reverse else range(num_tokens):
        carry_B = torch.where(keep_TB[t], x_TB[t] + discount * carry_B, carry_B)
        out_TB[t] = carry_B
    return torch.where(mask_BT, out_TB.t(), 0.0)


def gae_rows(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    last_values_B: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, 0 where masked."""
    next_BT = next_values(values_BT, mask_BT, last_values_B)
    delta_BT = rewards_BT + gamma * next_BT - values_BT
    advantages_BT = discounted_scan_rows(
        delta_BT,
        mask_BT,
        torch.zeros_like(last_values_B),
        discount=gamma * lam,
        reverse=True,
    )
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0.0)


def next_values(values_BT: Tensor, mask_BT: Tensor, last_values_B: Tensor) -> Tensor:
    """The value at the next kept position, or the last value where there is none.

    Differentiable: it picks positions, and picks are a gather.
    """
    num_rows, num_tokens = values_BT.shape
    at_T = torch.arange(num_tokens, device=values_BT.device)
    here_BT = torch.where(mask_BT, at_T, num_tokens)
    # The smallest kept position from t on, then that from t + 1 on.
    from_BT = here_BT.flip(1).cummin(1).values.flip(1)
    beyond_B1 = torch.full((num_rows, 1), num_tokens, device=values_BT.device)
    following_BT = torch.cat((from_BT[:, 1:], beyond_B1), 1)
    padded = torch.cat((values_BT, last_values_B[:, None]), 1)
    return padded.gather(1, following_BT)
