"""SLiC-HF: a hinge on the margin of log-probs."""

from __future__ import annotations

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.preference.types import PairLogps, check_positive


def slic_loss(
    pairs: PairLogps, *, beta: float = 1.0, delta: float = 1.0, use_reference: bool = False
) -> Tensor:
    """Calibration loss: the margin of the chosen completion should reach delta.

    loss = max(0, delta − beta (log π(chosen) − log π(rejected)))

    The paper adds lambda times the cross-entropy of a supervised target; the caller does.

    Args:
        pairs: With a reference if it is to be used.
        beta: Scale of the margin, above 0; 1 in the paper.
        delta: The margin, above 0.
        use_reference: Log ratios in place of log-probs, as TRL's `hinge` and Liu et al. 2023
            (arXiv:2309.06657, equation 9).

    Returns:
        float [N].

    Raises:
        ValueError: If a coefficient is out of range, or the reference is missing but needed.

    Source:
        Zhao et al. 2023, arXiv:2305.10425, equation 1.
    """
    check_positive("beta", beta)
    check_positive("delta", delta)
    if use_reference:
        margin_N = pairs.chosen_log_ratio - pairs.rejected_log_ratio
    else:
        margin_N = pairs.chosen - pairs.rejected
    return torch.relu(delta - beta * margin_N)
