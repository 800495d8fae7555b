"""The critic's loss, per token.

Legend: N sequences, T completion tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_loss(
    values_NT: Tensor,
    old_values_NT: Tensor,
    returns_NT: Tensor,
    mask_NT: Tensor,
    *,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    """max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2 at each token.

    Args:
        values_NT: float [N, T], the critic's values now.
        old_values_NT: float [N, T], its values when the rollout was made.
        returns_NT: float [N, T], what it should have said.
        mask_NT: bool [N, T].
        clip: How far a value may move in one iteration, in units of reward. None for the plain
            squared error.

    Returns:
        `(loss_NT, clipped_NT)`: float, 0 where masked; and bool, where the clipped term was the
        larger one.

    Source: Schulman et al. 2017's code (openai/baselines, ppo2); the factor 1/2 as in verl and TRL.
    """
    zeros_NT = torch.zeros_like(values_NT)
    # Masked inputs are replaced before any arithmetic, so that their NaN has no gradient either.
    values_NT = torch.where(mask_NT, values_NT, zeros_NT)
    old_values_NT = torch.where(mask_NT, old_values_NT, zeros_NT)
    returns_NT = torch.where(mask_NT, returns_NT, zeros_NT)
    plain_NT = (values_NT - returns_NT).square()
    if clip is None:
        return 0.5 * plain_NT, torch.zeros_like(mask_NT)
    bounded_NT = values_NT.clamp(old_values_NT - clip, old_values_NT + clip)
    clipped_NT = (bounded_NT - returns_NT).square()
    return 0.5 * torch.maximum(plain_NT, clipped_NT), clipped_NT.detach() > plain_NT.detach()


def explained_variance(values_NT: Tensor, returns_NT: Tensor, mask_NT: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the mask: 1 is perfect, 0 no better than a constant.

    NaN where it is undefined: fewer than two returns, or all of them equal.
    """
    returns = returns_NT[mask_NT]
    if returns.numel() < 2 or returns.var() == 0:
        return float("nan")
    return float(1 - (returns - values_NT[mask_NT]).var() / returns.var())
