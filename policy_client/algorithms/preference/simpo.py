"""SimPO: no reference, rewards per token, and a margin to win by."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rewardsvc.policy_client.algorithms.preference.types import (
    PairLogps,
    check_positive,
    check_smoothing,
)


def simpo_loss(
    pairs: PairLogps, *, beta: float, gamma: float, label_smoothing: float = 0.0
) -> Tensor:
    """Bradley-Terry with a margin on mean log-probs.

    z = beta (log π(chosen) / n_chosen − log π(rejected) / n_rejected) − gamma,
    loss = −(1 − e) log sigmoid(z) − e log sigmoid(−z)

    Args:
        pairs: A reference is not read.
        beta: Scale of the rewards, above 0; 2 to 2.5 in the paper.
        gamma: The margin, in units of reward; 0.3 to 1.6 in the paper. At least 0.
        label_smoothing: As in cDPO; not in the paper, but in its authors' code.

    Returns:
        float [N], in nats.

    Raises:
        ValueError: If a coefficient is out of range.

    Source:
        Meng et al. 2024, arXiv:2405.14734, equation 6.
    """
    check_positive("beta", beta)
    check_smoothing(label_smoothing)
    if not gamma >= 0.0:
        raise ValueError(f"gamma is {gamma}; it must be at least 0")
    z_N = beta * (pairs.chosen_mean - pairs.rejected_mean) - gamma
    loss_N = -F.logsigmoid(z_N)
    if label_smoothing:
        loss_N = (1.0 - label_smoothing) * loss_N - label_smoothing * F.logsigmoid(-z_N)
    return loss_N
