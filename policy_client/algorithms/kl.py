"""Estimates of KL(policy || reference) from the log-probs of sampled tokens."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class KlEstimator(StrEnum):
    """Which estimate of the KL divergence per token."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class KlClamps(StrEnum):
    """Bounds on estimates, by the library that has them; beyond a bound the gradient is 0.

    * NONE: none (papers, TRL).
    * VERL: k3 clamps log ratios to +-20 before it exponentiates them, and its estimate to 10 nats.
    * OPENRLHF: every estimate is clamped to +-10 nats.
    """

    NONE = "none"
    VERL = "verl"
    OPENRLHF = "openrlhf"


LOG_RATIO_LIMIT = 20.0
"""VERL clamps log ratios to +-20 in k3."""

ESTIMATE_LIMIT = 10.0
"""VERL clamps k3, and OPENRLHF every estimate, to 10 nats per token."""


def kl_estimate(
    logprobs_NT: Tensor,
    ref_logprobs_NT: Tensor,
    mask_NT: Tensor,
    estimator: KlEstimator,
    *,
    clamps: KlClamps = KlClamps.VERL,
) -> Tensor:
    """The KL estimate of each token, in nats: float [N, T], 0 where masked.

    With d = log ref - log policy of a token that the policy sampled:

    * k1 = -d: unbiased, can be negative. Its gradient in a loss has mean 0, so it belongs into
      rewards.
    * k2 = d^2 / 2: biased, never negative; its gradient is that of the KL.
    * k3 = exp(d) - d - 1: unbiased but for its clamps, never negative. The mean of its gradient is
      that of KL(ref || policy), not of the KL that it estimates.

    Args:
        logprobs_NT: float [N, T], log-probs under the policy.
        ref_logprobs_NT: float [N, T], under the reference.
        mask_NT: bool [N, T].
        estimator: Which one.
        clamps: Whose bounds.

    Source: Schulman 2020, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html. k3
    goes through expm1: exp(d) - 1 - d cancels where policies are close, which is where it is used.
    """
    d = torch.where(mask_NT, ref_logprobs_NT - logprobs_NT, 0.0)
    if estimator is KlEstimator.K1:
        estimate = -d
    elif estimator is KlEstimator.K2:
        estimate = 0.5 * d * d
    else:
        if clamps is KlClamps.VERL:
            d = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        estimate = torch.expm1(d) - d
    bounded = clamps is KlClamps.OPENRLHF or (
        clamps is KlClamps.VERL and estimator is KlEstimator.K3
    )
    return estimate.clamp(-ESTIMATE_LIMIT, ESTIMATE_LIMIT) if bounded else estimate
