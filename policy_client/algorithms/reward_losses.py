"""Losses of reward models, as pure functions of scores.

Legend: N pairs. Scores are what the model's scalar head gives, in units of reward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def bradley_terry_loss(
    chosen_N: torch.Tensor,
    rejected_N: torch.Tensor,
    *,
    margin_N: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    center_coefficient: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood that the chosen completion wins, pair by pair.

    With d = chosen - rejected - margin and smoothing e:
    loss = -(1 - e) log sigmoid(d) - e log sigmoid(-d) + center_coefficient (chosen + rejected)^2

    Args:
        chosen_N: float [N], score of the better completion.
        rejected_N: float [N], score of the worse one.
        margin_N: float [N], by how much the better one should win; none is zero.
        label_smoothing: Share of pairs believed to be labelled the wrong way round, in [0, 0.5).
        center_coefficient: Pulls the mean of a pair's scores to zero, which the comparison alone
            leaves free. At least 0; 0.01 is usual.

    Returns:
        float [N], in nats; average it.

    Raises:
        ValueError: If a coefficient is out of range, or shapes differ.

    Source:
        Bradley-Terry with a margin: Touvron et al. 2023, "Llama 2", arXiv:2307.09288, equations 1
        and 2. Centering: Eisenstein et al. 2023, arXiv:2312.09244, section 2.3. Smoothing as in
        the conservative DPO of Mitchell 2023. All three agree with TRL's `RewardTrainer` where it
        has them.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 0.5)")
    if center_coefficient < 0.0:
        raise ValueError(f"center_coefficient is {center_coefficient}; it must be at least 0")
    if chosen_N.shape != rejected_N.shape:
        raise ValueError(
            f"chosen has shape {tuple(chosen_N.shape)}, rejected {tuple(rejected_N.shape)}; "
            "give one score each for every pair"
        )
    difference_N = chosen_N - rejected_N
    if margin_N is not None:
        if margin_N.shape != chosen_N.shape:
            raise ValueError(
                f"margin has shape {tuple(margin_N.shape)}, chosen {tuple(chosen_N.shape)}; "
                "give one margin for every pair"
            )
        difference_N = difference_N - margin_N
    loss_N = -F.logsigmoid(difference_N)
    if label_smoothing > 0.0:
        flipped_N = -F.logsigmoid(-difference_N)
        loss_N = (1.0 - label_smoothing) * loss_N + label_smoothing * flipped_N
    if center_coefficient > 0.0:
        loss_N = loss_N + center_coefficient * (chosen_N + rejected_N).square()
    return loss_N
