"""Losses of reward models beyond one pair at a time: whole rankings, and Thurstone's model.

Legend: K completions of one prompt, from best to worst; N pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plackett_luce_loss(score_K: Tensor, *, top: int | None = None) -> Tensor:
    """Negative log-likelihood of a ranking.

    loss = −sum_k [s_k − log sum_{j ≥ k} exp(s_j)]: the best is drawn from all, the second from the
    rest, and so on. For two completions it is Bradley-Terry.

    Args:
        score_K: float [K], in the order of the ranking, best first.
        top: Only the first so many places are observed; the rest is known to be worse, in no order.
            All if None.

    Returns:
        Scalar, in nats; 0 for fewer than two completions.

    Raises:
        ValueError: If `top` is below 1, or scores are not a vector.

    Source:
        Plackett 1975; Luce 1959; as a loss of reward models Zhu et al. 2023, arXiv:2301.11270,
        equation 3. Ties have no place in this model; break them or leave one out.
    """
    if score_K.dim() != 1:
        raise ValueError(f"score_K has shape {tuple(score_K.shape)}; a vector is needed")
    if top is not None and top < 1:
        raise ValueError(f"top is {top}; it must be at least 1")
    # log sum_{j >= k} exp(s_j), for all k at once.
    rest_K = score_K.flip(0).logcumsumexp(0).flip(0)
    # The last place is certain once all others are filled.
    places = min(len(score_K) - 1, len(score_K) if top is None else top)
    return (rest_K - score_K)[: max(places, 0)].sum()


def thurstone_loss(chosen_N: Tensor, rejected_N: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Negative log-likelihood of comparisons whose noise is normal in place of logistic.

    loss = −log Phi((chosen − rejected) / (sigma sqrt 2))

    Each score is the mean of a normal judgement of deviation sigma. Far on the wrong side the loss
    grows with the square of the difference, where Bradley-Terry's grows linearly: mislabelled pairs
    weigh more.

    Args:
        chosen_N: float [N].
        rejected_N: float [N].
        sigma: Deviation of one judgement, above 0.

    Returns:
        float [N], in nats.

    Raises:
        ValueError: If sigma is not above 0 or shapes differ.

    Source:
        Thurstone 1927, "A law of comparative judgment", case V.
    """
    if not sigma > 0.0:
        raise ValueError(f"sigma is {sigma}; it must be above 0")
    if chosen_N.shape != rejected_N.shape:
        raise ValueError(
            f"chosen has shape {tuple(chosen_N.shape)}, rejected {tuple(rejected_N.shape)}; "
            "give one score each for every pair"
        )
    z_N = (chosen_N - rejected_N) / (sigma * 2.0**0.5)
    loss_N: Tensor = -torch.special.log_ndtr(z_N)
    return loss_N
