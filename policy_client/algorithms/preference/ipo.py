"""IPO: a squared distance in place of the logistic, so that certain preferences do not drive the
policy to infinity.
"""

from __future__ import annotations

from torch import Tensor

from rewardsvc.policy_client.algorithms.preference.types import PairLogps, check_positive


def ipo_loss(pairs: PairLogps, *, beta: float, average: bool = False) -> Tensor:
    """Squared distance of the margin from 1 / (2 beta).

    loss = (log ratio of chosen − log ratio of rejected − 1 / (2 beta))^2

    Args:
        pairs: With a reference.
        beta: The paper's tau, above 0.
        average: Take log ratios per token. The paper and its authors' code sum over tokens; TRL
            averages.

    Returns:
        float [N].

    Raises:
        ValueError: If beta is out of range or the reference is missing.

    Source:
        Azar et al. 2023, arXiv:2310.12036, equation 17.
    """
    check_positive("beta", beta)
    chosen_N, rejected_N = pairs.chosen_log_ratio, pairs.rejected_log_ratio
    if average:
        chosen_N = chosen_N / pairs.chosen_tokens
        rejected_N = rejected_N / pairs.rejected_tokens
    return (chosen_N - rejected_N - 1.0 / (2.0 * beta)).square()
