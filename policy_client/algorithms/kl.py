"""Estimates of KL(policy || reference) from the log-probs of sampled tokens."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""k3 clamps log ratios to +-20 before it exponentiates them: verl's value."""

K3_LIMIT = 10.0
"""k3 clamps its estimate to at most 10 nats per token: verl's value."""


class KlEstimator(StrEnum):
    """Which estimate of the KL divergence per token."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


def kl_estimate(
    logprobs_NT: Tensor, ref_logprobs_NT: Tensor, mask_NT: Tensor, estimator: KlEstimator
) -> Tensor:
    """The KL estimate of each token, in nats: float [N, T], 0 where masked.

    With d = log ref - log policy of a token that the policy sampled:

    * k1 = -d: unbiased, can be negative. Its gradient in a loss has mean 0, so it belongs into
      rewards.
    * k2 = d^2 / 2: biased, never negative; its gradient is that of the KL.
    * k3 = exp(d) - d - 1: unbiased, never negative. d is clamped to +-20 and the estimate to 10;
      beyond these limits the gradient is 0, and k3 is biased.

    Args:
        logprobs_NT: float [N, T], log-probs under the policy.
        ref_logprobs_NT: float [N, T], under the reference.
        mask_NT: bool [N, T].
        estimator: Which one.

    Source: Schulman 2020, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html; the
    clamps are those of verl.
    """
    d = torch.where(mask_NT, ref_logprobs_NT - logprobs_NT, 0.0)
    if estimator is KlEstimator.K1:
        return -d
    if estimator is KlEstimator.K2:
        return 0.5 * d * d
    d = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (torch.expm1(d) - d).clamp(max=K3_LIMIT)
