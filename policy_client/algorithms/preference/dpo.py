"""DPO, and cDPO: the policy is its own reward model."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rewardsvc.policy_client.algorithms.preference.types import (
    PairLogps,
    check_positive,
    check_smoothing,
)


def dpo_loss(
    pairs: PairLogps, *, beta: float, label_smoothing: float = 0.0, length_coefficient: float = 0.0
) -> Tensor:
    """Bradley-Terry on implicit rewards beta (log π − log π_ref).

    With h = log ratio of chosen − log ratio of rejected, smoothing e, lengths n and coefficient a:
    z = beta h + a (n_chosen − n_rejected),
    loss = −(1 − e) log sigmoid(z) − e log sigmoid(−z)

    Args:
        pairs: With a reference.
        beta: Strength of the reference, above 0; 0.1 is usual.
        label_smoothing: Share of pairs believed to be the wrong way round (cDPO), in [0, 0.5).
        length_coefficient: What a token of length is believed to be worth to the judges, in units
            of reward: a preference that length explains teaches less. 0 is plain DPO.

    Returns:
        float [N], in nats.

    Raises:
        ValueError: If a coefficient is out of range or the reference is missing.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, equation 7. Smoothing: Mitchell 2023, "A note on DPO
        with noisy preferences", equation 4. Length ("R-DPO"): Park et al. 2024, arXiv:2403.19159,
        section 3: the policy maximises r − a n, so its implicit reward has + a n. TRL's `sigmoid`
        ignores smoothing; its `robust` is another loss.
    """
    check_positive("beta", beta)
    check_smoothing(label_smoothing)
    z_N = beta * (pairs.chosen_log_ratio - pairs.rejected_log_ratio)
    if length_coefficient:
        z_N = z_N + length_coefficient * (pairs.chosen_tokens - pairs.rejected_tokens)
    loss_N = -F.logsigmoid(z_N)
    if label_smoothing:
        loss_N = (1.0 - label_smoothing) * loss_N - label_smoothing * F.logsigmoid(-z_N)
    return loss_N
