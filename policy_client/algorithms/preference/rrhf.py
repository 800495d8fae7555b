"""RRHF: completions ranked by reward should be ranked alike by mean log-prob."""

from __future__ import annotations

import torch
from torch import Tensor


def rrhf_loss(mean_logp_K: Tensor, reward_K: Tensor, *, nll_coefficient: float = 1.0) -> Tensor:
    """Ranking hinge over all pairs of one prompt, and the likelihood of the best completion.

    loss = sum over r_i < r_j of max(0, p_i − p_j)  −  coefficient · (log π of the best)

    Equal rewards are no pair. Of several best completions the first counts.

    Args:
        mean_logp_K: float [K], log-prob per token of the K completions of one prompt.
        reward_K: float [K], finite.
        nll_coefficient: 1 in the paper; at least 0. The likelihood is per token, where the paper's
            equation sums: long answers would otherwise outweigh the ranking.

    Returns:
        Scalar.

    Raises:
        ValueError: If shapes differ, there is no completion, or a reward is not finite.

    Source:
        Yuan et al. 2023, arXiv:2304.05302, equations 2 to 4.
    """
    if mean_logp_K.shape != reward_K.shape or mean_logp_K.dim() != 1 or not len(reward_K):
        raise ValueError(
            f"mean_logp_K has shape {tuple(mean_logp_K.shape)}, reward_K {tuple(reward_K.shape)}; "
            "give both for at least one completion"
        )
    if not bool(torch.isfinite(reward_K).all()):
        raise ValueError(f"reward_K is {reward_K.tolist()}; leave completions without a reward out")
    if nll_coefficient < 0.0:
        raise ValueError(f"nll_coefficient is {nll_coefficient}; it must be at least 0")
    worse_KK = reward_K[:, None] < reward_K[None, :]
    hinge_KK = torch.relu(mean_logp_K[:, None] - mean_logp_K[None, :])
    ranking = (hinge_KK * worse_KK).sum()
    return ranking - nll_coefficient * mean_logp_K[reward_K.argmax()]
