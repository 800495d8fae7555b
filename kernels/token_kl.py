"""`token_kl`: estimates of KL(policy || reference) from the log-probs of sampled tokens."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""k3 clamps log ratios to +-20 before it exponentiates them: verl's value."""

K3_LIMIT = 10.0
"""k3 clamps its estimate to at most 10 nats a token: verl's value."""


class KlEstimator(StrEnum):
    """Which estimate of the KL divergence a token gives; d = log ref - log policy.

    K1: -d; unbiased, can be negative.
    K2: d^2 / 2; biased, never negative.
    K3: exp(d) - d - 1; unbiased but for its clamps, never negative.
    """

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


def token_kl(
    logp: Tensor, ref_logp: Tensor, *, estimator: str = "k3", mask: Tensor | None = None
) -> Tensor:
    """The KL estimate of each token in nats; differentiable in both log-probs.

    Args:
        logp: Log-probs under the policy, any shape.
        ref_logp: Under the reference, same shape.
        estimator: "k1", "k2" or "k3".
        mask: bool, same shape; the others get zeros and no gradient, whatever they hold.

    Returns:
        In the shape of `logp`.

    Raises:
        ValueError: If the estimator is unknown.

    Source: Schulman 2020, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html; the
    clamps are those of verl. k3 is computed by expm1: exp(d) - 1 - d cancels where policies are
    close, which is where it is used.
    """
    d = ref_logp - logp
    if mask is not None:
        # Before anything else: the gradient of a NaN that is dropped afterwards is NaN.
        d = torch.where(mask, ref_logp, 0.0) - torch.where(mask, logp, 0.0)
    match KlEstimator(estimator):
        case KlEstimator.K1:
            return -d
        case KlEstimator.K2:
            return 0.5 * d * d
        case KlEstimator.K3:
            d = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            return (torch.expm1(d) - d).clamp(max=K3_LIMIT)
