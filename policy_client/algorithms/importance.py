"""Importance weights for rollouts whose sampler is not quite the trainer's policy.

An inference engine with other kernels, another precision or older weights draws tokens from a
distribution near the policy, not from it. The weight policy / sampler corrects for that, and is
bounded because its variance is not.

Legend: N sequences, T completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log ratios are clamped to +-20 before they are exponentiated: verl's value."""


class IsMode(StrEnum):
    """What happens to ratios out of bounds, and over what they are taken.

    * OFF: no correction; the ratio is measured all the same.
    * TOKEN_TRUNCATE: each token's own ratio, clamped to the bounds (truncated importance sampling).
    * TOKEN_MASK: each token's own; out of bounds its loss is dropped (IcePop).
    * SEQUENCE_TRUNCATE: the product over the completion, one for all of its tokens, clamped.
    * SEQUENCE_MASK: the product; out of bounds the completion's loss is dropped.
    """

    OFF = "off"
    TOKEN_TRUNCATE = "token-truncate"  # noqa: S105 - no secret
    TOKEN_MASK = "token-mask"  # noqa: S105 - no secret
    SEQUENCE_TRUNCATE = "sequence-truncate"
    SEQUENCE_MASK = "sequence-mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class IsCorrection:
    """How a mismatch between sampler and trainer is corrected for.

    Attributes:
        mode: Which way.
        low: Smallest ratio within bounds; 0 for no lower bound.
        high: Largest ratio within bounds.

    Raises:
        ValueError: If the bounds are out of range.
    """

    mode: IsMode = IsMode.OFF
    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"low is {self.low}, high is {self.high}; need 0 <= low < high")


def mismatch_ratio(
    trainer_logprobs_NT: Tensor, sampler_logprobs_NT: Tensor, mask_NT: Tensor, mode: IsMode
) -> Tensor:
    """exp(log p_trainer - log p_sampler) before any bound: float [N, T], detached, 1 where masked.

    This is what to watch: bounds hide how far the two are apart. In the sequence modes all tokens
    of a completion have its product. A sampler's log-prob that is NaN, which some engines give for
    tokens that they were made to write, counts as equal.

    Args:
        trainer_logprobs_NT: float [N, T], under the trainer's policy before its first update.
        sampler_logprobs_NT: float [N, T], as the engine reported them. They must be of the same
            distribution as the trainer's, the whole vocabulary at the same temperature: log-probs
            after top-k or top-p are renormalised over fewer tokens, and every ratio to them is too
            small.
        mask_NT: bool [N, T].
        mode: TOKEN_* or OFF for tokens, SEQUENCE_* for products.
    """
    difference_NT = (trainer_logprobs_NT - sampler_logprobs_NT).detach()
    difference_NT = torch.where(mask_NT & difference_NT.isfinite(), difference_NT, 0.0)
    if mode in (IsMode.SEQUENCE_TRUNCATE, IsMode.SEQUENCE_MASK):
        difference_NT = torch.where(mask_NT, difference_NT.sum(1, keepdim=True), 0.0)
    return difference_NT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def mismatch_weights(ratio_NT: Tensor, correction: IsCorrection) -> Tensor:
    """The factor of each token's loss: float [N, T].

    Args:
        ratio_NT: float [N, T], from `mismatch_ratio` with the same mode.
        correction: Mode and bounds; OFF gives ones.

    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training" (https://fengyao.notion.site/off-policy-rl), truncated importance sampling; Espeholt
    et al. 2018, "IMPALA" (arXiv:1802.01561), for the truncation; masking: Ling Team 2025, "Every
    Step Evolves" (arXiv:2510.18855), section on IcePop. The four modes are those of TRL.
    """
    if correction.mode is IsMode.OFF:
        return torch.ones_like(ratio_NT)
    if correction.mode in (IsMode.TOKEN_TRUNCATE, IsMode.SEQUENCE_TRUNCATE):
        return ratio_NT.clamp(correction.low, correction.high)
    within_NT = (ratio_NT >= correction.low) & (ratio_NT <= correction.high)
    return torch.where(within_NT, ratio_NT, 0.0)
