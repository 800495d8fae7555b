"""Statistics over masked tensors in which nothing that is masked can leak, not even NaN.

`x * mask` is the obvious version, and wrong: NaN * 0 is NaN, in the value and in the gradient.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """The sum of `x` where `mask` is True: a scalar; 0 if nothing is."""
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of `x` where `mask` is True: a scalar; 0 if nothing is."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """The variance of `x` where `mask` is True, with Bessel's correction: a scalar.

    0 if fewer than two elements are, rather than the NaN of 0/0.
    """
    centred = x - masked_mean(x, mask)
    return masked_sum(centred * centred, mask) / (mask.sum() - 1).clamp(min=1)


class Whitening(StrEnum):
    """How token advantages are brought to mean 0 and standard deviation 1 over the batch.

    * NONE: not at all.
    * BESSEL: (x - mean) / sqrt(var + 1e-8), the variance with Bessel's correction (verl, TRL).
    * POPULATION: (x - mean) / sqrt(max(var, 1e-8)), the population variance (OpenRLHF).
    """

    NONE = "none"
    BESSEL = "bessel"
    POPULATION = "population"


def masked_whiten(
    x: Tensor, mask: Tensor, *, eps: float = 1e-8, whitening: Whitening = Whitening.BESSEL
) -> Tensor:
    """`x` with mean 0 and standard deviation 1 over the mask; 0 where masked.

    Args:
        x: float, any shape.
        mask: bool, the same shape.
        eps: Added to the variance; with POPULATION its lower bound.
        whitening: Which variance.

    Returns:
        A tensor of the shape and dtype of `x`. All zeros if fewer than two elements are unmasked.

    Source: Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", detail "whiten
    advantages" (arXiv:2403.17031); the mean is not added back.
    """
    if whitening is Whitening.NONE:
        return torch.where(mask, x, torch.zeros_like(x))
    var = masked_var(x, mask)
    if whitening is Whitening.POPULATION:
        count = mask.sum()
        var = (var * (count - 1).clamp(min=0) / count.clamp(min=1)).clamp(min=eps)
    else:
        var = var + eps
    whitened = (x - masked_mean(x, mask)) * torch.rsqrt(var)
    return torch.where(mask, whitened, torch.zeros_like(x))
