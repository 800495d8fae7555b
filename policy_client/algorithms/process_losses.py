"""Losses of process reward models: one label a step.

Legend: S steps, in the order in which they were read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def step_loss(logits_S2: Tensor, label_S: Tensor) -> Tensor:
    """Cross-entropy of steps being wrong (column 0) or right (column 1).

    loss = −y log softmax(z)_1 − (1 − y) log softmax(z)_0

    Args:
        logits_S2: float [S, 2].
        label_S: float [S], probability that a step is right, in [0, 1]: 0 and 1 are hard labels,
            shares of successful rollouts soft ones.

    Returns:
        float [S], in nats.

    Raises:
        ValueError: If shapes do not fit or a label is out of range.

    Source:
        Lightman et al. 2023, arXiv:2305.20050, section 2.6 (hard labels); Wang et al. 2023, "Math-
        Shepherd", arXiv:2312.08935, equation 2 (both kinds).
    """
    if logits_S2.shape != (*label_S.shape, 2):
        raise ValueError(
            f"logits has shape {tuple(logits_S2.shape)}, labels {tuple(label_S.shape)}; "
            "give two logits for every label"
        )
    if bool(((label_S < 0.0) | (label_S > 1.0) | label_S.isnan()).any()):
        raise ValueError(f"labels are {label_S.tolist()}; each must be in [0, 1]")
    # At least float32: half precision has too few digits for log-probs.
    wide = torch.promote_types(logits_S2.dtype, torch.float32)
    logp_S2 = F.log_softmax(logits_S2.to(wide), dim=-1)
    target_S2 = torch.stack([1.0 - label_S, label_S], dim=-1)
    return -(target_S2 * logp_S2).sum(-1)
