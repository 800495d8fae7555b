"""KTO: completions that are good or bad by themselves, without pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.preference.types import check_positive


def kto_loss(
    log_ratio_N: Tensor,
    desirable_N: Tensor,
    *,
    kl: Tensor,
    beta: float,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Prospect-theoretic value of each completion, turned into a loss.

    good: w_good (1 − sigmoid(beta (l − kl))),   bad: w_bad (1 − sigmoid(beta (kl − l)))

    Args:
        log_ratio_N: float [N], log π − log π_ref of each completion.
        desirable_N: bool [N].
        kl: Scalar of `kto_kl`; no gradient flows through it.
        beta: Above 0; 0.1 is usual.
        weights: Of good and of bad completions; the paper keeps w_good n_good / (w_bad n_bad)
            between 1 and 4/3.

    Returns:
        float [N].

    Raises:
        ValueError: If a coefficient is out of range or shapes differ.

    Source:
        Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8.
    """
    check_positive("beta", beta)
    if min(weights) < 0.0:
        raise ValueError(f"weights is {weights}; both must be at least 0")
    if desirable_N.shape != log_ratio_N.shape:
        raise ValueError(
            f"desirable_N has shape {tuple(desirable_N.shape)}, log_ratio_N "
            f"{tuple(log_ratio_N.shape)}; give one label for every completion"
        )
    distance_N = beta * (log_ratio_N - kl.detach())
    good_N = weights[0] * (1.0 - torch.sigmoid(distance_N))
    bad_N = weights[1] * (1.0 - torch.sigmoid(-distance_N))
    return torch.where(desirable_N, good_N, bad_N)


def kto_kl(mismatched_log_ratio_N: Tensor) -> Tensor:
    """The reference point: an estimate of KL(π, π_ref) from completions of *other* prompts.

    kl = max(0, mean(log π(y' | x) − log π_ref(y' | x))), where y' answers another prompt than x.

    A batch needs at least two different completions, or the "mismatch" is the pair itself, which
    biases the estimate; the trainer sees to that.

    Args:
        mismatched_log_ratio_N: float [N]; may be empty, which gives 0.

    Returns:
        Scalar without a gradient, in nats.

    Source:
        Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1.
    """
    if mismatched_log_ratio_N.numel() == 0:
        return mismatched_log_ratio_N.new_zeros(())
    return mismatched_log_ratio_N.detach().mean().clamp(min=0.0)
