"""SPPO: self-play against the last policy, as a regression of log ratios on win rates."""

from __future__ import annotations

from torch import Tensor

from rewardsvc.policy_client.algorithms.preference.types import PairLogps, check_positive


def sppo_loss(
    pairs: PairLogps,
    *,
    beta: float,
    chosen_win_rate_N: Tensor | float = 1.0,
    rejected_win_rate_N: Tensor | float = 0.0,
    mean_of_two: bool = True,
) -> Tensor:
    """Squared distance of each log ratio from what its win rate asks for.

    loss = ((l_chosen − (w_chosen − 1/2) / beta)^2 + (l_rejected − (w_rejected − 1/2) / beta)^2) / 2

    where l is the log ratio to the policy of the last iteration. Win rates 1 and 0 are "SPPO-hard".

    Args:
        pairs: The reference is the policy of the last iteration.
        beta: 1 / eta of the paper, above 0; 0.001 there.
        chosen_win_rate_N: [N], probability that the chosen completion beats the last policy's.
        rejected_win_rate_N: [N], likewise.
        mean_of_two: Halve the sum, as the paper's repository does. TRL's `sppo_hard` does not.

    Returns:
        float [N].

    Raises:
        ValueError: If beta is out of range or the reference is missing.

    Source:
        Wu et al. 2024, arXiv:2405.00675, equation 4.8.
    """
    check_positive("beta", beta)
    chosen_N = pairs.chosen_log_ratio - (chosen_win_rate_N - 0.5) / beta
    rejected_N = pairs.rejected_log_ratio - (rejected_win_rate_N - 0.5) / beta
    sum_N = chosen_N.square() + rejected_N.square()
    return sum_N / 2.0 if mean_of_two else sum_N
