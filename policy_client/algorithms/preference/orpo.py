"""ORPO: supervised fine-tuning and preference in one loss, without a reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rewardsvc.policy_client.algorithms.preference.types import PairLogps, check_positive


def orpo_loss(pairs: PairLogps, *, nll_N: Tensor, odds_coefficient: float) -> Tensor:
    """Negative log-likelihood of the chosen completion, and the odds ratio.

    With p = exp(log π / n), the geometric mean of the token probabilities:
    loss = nll − coefficient · log sigmoid(log odds(p_chosen) − log odds(p_rejected)),
    odds(p) = p / (1 − p)

    Args:
        pairs: A reference is not read.
        nll_N: float [N], mean negative log-likelihood a token of what is to be learned: the chosen
            completion (LLaMA-Factory), or prompt and completion (TRL).
        odds_coefficient: The paper's lambda, above 0; 0.1 is usual.

    Returns:
        float [N], in nats.

    Raises:
        ValueError: If the coefficient is out of range or shapes differ.

    Source:
        Hong et al. 2024, arXiv:2403.07691, equations 6 and 7.
    """
    check_positive("odds_coefficient", odds_coefficient)
    if nll_N.shape != pairs.chosen.shape:
        raise ValueError(
            f"nll_N has shape {tuple(nll_N.shape)}, chosen {tuple(pairs.chosen.shape)}; "
            "give one for every pair"
        )
    log_odds_ratio_N = log_odds(pairs.chosen_mean) - log_odds(pairs.rejected_mean)
    return nll_N - odds_coefficient * F.logsigmoid(log_odds_ratio_N)


def log_odds(logp_N: Tensor) -> Tensor:
    """log(p / (1 − p)) from log p.

    `log1p(-exp(x))` loses all digits where p is near 1, `log(-expm1(x))` where it is near 0. Each
    is used where it is exact (Mächler 2012). At p = 1 the smallest distance that the dtype can tell
    stands in, so that neither value nor gradient is infinite.
    """
    smallest = torch.finfo(logp_N.dtype).eps
    x_N = logp_N.clamp(max=-smallest)
    near_one_N = x_N > -math.log(2.0)
    # Each branch sees only arguments that suit it: `where` passes NaN gradients of the other on.
    expm1_N = torch.where(near_one_N, x_N, torch.full_like(x_N, -1.0))
    log1p_N = torch.where(near_one_N, torch.full_like(x_N, -1.0), x_N)
    log_complement_N = torch.where(
        near_one_N, torch.log(-torch.expm1(expm1_N)), torch.log1p(-torch.exp(log1p_N))
    )
    return x_N - log_complement_N
