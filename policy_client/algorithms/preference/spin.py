"""SPIN: the policy learns to tell people's completions from its own of the last iteration."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional as F

from rewardsvc.policy_client.algorithms.preference.types import PairLogps, check_positive


class Link(StrEnum):
    """How a margin becomes a loss; all fall monotonically and are convex.

    LOGISTIC: log(1 + exp(−t)), the paper's choice; then SPIN's loss is DPO's.
    HINGE: max(0, 1 − t).
    EXPONENTIAL: exp(−t).
    """

    LOGISTIC = "logistic"
    HINGE = "hinge"
    EXPONENTIAL = "exponential"


def spin_loss(pairs: PairLogps, *, beta: float, link: Link = Link.LOGISTIC) -> Tensor:
    """link(beta (log ratio of the person's completion − log ratio of the policy's own)).

    Args:
        pairs: Chosen is the data's completion, rejected one that the policy of the last iteration
            made; that policy is also the reference.
        beta: The paper's lambda, above 0; 0.1 is usual.
        link: Of the three that the paper names.

    Returns:
        float [N].

    Raises:
        ValueError: If beta is out of range or the reference is missing.

    Source:
        Chen et al. 2024, arXiv:2401.01335, equation 4.7.
    """
    check_positive("beta", beta)
    margin_N = beta * (pairs.chosen_log_ratio - pairs.rejected_log_ratio)
    if link is Link.HINGE:
        return torch.relu(1.0 - margin_N)
    if link is Link.EXPONENTIAL:
        return torch.exp(-margin_N)
    return -F.logsigmoid(margin_N)
