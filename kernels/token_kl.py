"""`token_kl`: estimates of KL(policy || reference) from the log-probs of sampled tokens."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""VERL clamps log ratios to +-20 before k3 exponentiates them."""

ESTIMATE_LIMIT = 10.0
"""VERL clamps k3, and OPENRLHF every estimate, to +-10 nats a token."""


class KlEstimator(StrEnum):
    """Which estimate of the KL divergence a token gives; d = log ref - log policy.

    K1: -d; unbiased, can be negative.
    K2: d^2 / 2; biased, never negative.
    K3: exp(d) - d - 1; unbiased but for its clamps, never negative.
    """

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class KlClamps(StrEnum):
    """Bounds on estimates, by the library that has them; beyond a bound the gradient is 0.

    NONE: None (papers, TRL).
    VERL: k3 clamps log ratios to +-20 before it exponentiates them, and its estimate to 10 nats.
    OPENRLHF: Every estimate is clamped to +-10 nats.
    """

    NONE = "none"
    VERL = "verl"
    OPENRLHF = "openrlhf"


def token_kl(
    logp: Tensor,
    ref_logp: Tensor,
    *,
    estimator: str = "k3",
    clamps: str = "verl",
    mask: Tensor | None = None,
) -> Tensor:
    """The KL estimate of each token in nats; differentiable in both log-probs.

    Args:
        logp: Log-probs under the policy, any shape.
        ref_logp: Under the reference, same shape.
        estimator: "k1", "k2" or "k3".
        clamps: Whose bounds: "none", "verl" or "openrlhf".
        mask: bool, same shape; the others get zeros and no gradient, whatever they hold.

    Returns:
        In the shape of `logp`.

    Raises:
        ValueError: If the estimator or the clamps are unknown.

    Source: Schulman 2020, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html. k3
    is computed by expm1: exp(d) - 1 - d cancels where policies are close, which is where it is
    used.
    """
    kind, bounds = KlEstimator(estimator), KlClamps(clamps)
    d = ref_logp - logp
    if mask is not None:
        # Before anything else: the gradient of a NaN that is dropped afterwards is NaN.
        d = torch.where(mask, ref_logp, 0.0) - torch.where(mask, logp, 0.0)
    if kind is KlEstimator.K1:
        estimate = -d
    elif kind is KlEstimator.K2:
        estimate = 0.5 * d * d
    else:
        if bounds is KlClamps.VERL:
            d = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        estimate = torch.expm1(d) - d
    if bounds_estimate(kind, bounds):
        estimate = estimate.clamp(-ESTIMATE_LIMIT, ESTIMATE_LIMIT)
    return estimate


def bounds_estimate(estimator: KlEstimator, clamps: KlClamps) -> bool:
    """Whether the estimate itself is bounded."""
    verl_k3 = clamps is KlClamps.VERL and estimator is KlEstimator.K3
    return verl_k3 or clamps is KlClamps.OPENRLHF
