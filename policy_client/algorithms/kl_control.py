"""The weight of the KL penalty over time: fixed, or steered towards a target."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class KlRule(StrEnum):
    """How the coefficient is steered, where there is a target.

    * ADAPTIVE: in proportion to the error, on the KL of whole completions (Ziegler).
    * DOUBLING: doubled or halved when the KL of a token leaves a band (PPO-penalty).
    """

    ADAPTIVE = "adaptive"
    DOUBLING = "doubling"


MAX_RELATIVE_ERROR = 0.2
"""One update changes the coefficient by at most this share of num_samples / horizon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KlController:
    """Steers the coefficient so that the mean KL per completion comes to `target`.

    Attributes:
        target: Wanted mean KL of a completion (summed over its tokens), in nats. None keeps the
            coefficient as it is.
        horizon: Completions over which an error of 20% or more would multiply the coefficient by
            about e^0.2.

    Raises:
        ValueError: If the target or the horizon is not positive.

    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2
    (arXiv:1909.08593).
    """

    target: float | None = None
    horizon: int = 10_000

    def __post_init__(self) -> None:
        if self.target is not None and not self.target > 0:
            raise ValueError(
                f"target is {self.target}; it must be positive, or None for a fixed coefficient"
            )
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}; it must be at least 1")

    def updated(self, coef: float, *, kl: float, num_samples: int) -> float:
        """The next coefficient: coef * (1 + clip(kl / target - 1, +-0.2) * num_samples / horizon).

        Args:
            coef: The present coefficient.
            kl: Measured mean KL of a completion, in nats.
            num_samples: Completions that it was measured on.
        """
        if self.target is None:
            return coef
        error = min(max(kl / self.target - 1.0, -MAX_RELATIVE_ERROR), MAX_RELATIVE_ERROR)
        return coef * (1.0 + error * num_samples / self.horizon)


DOUBLING_BAND = 1.5
"""The coefficient is left alone while target / 1.5 <= KL <= 1.5 * target."""

DOUBLING_FACTOR = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DoublingRule:
    """PPO-penalty's rule: beta * 2 if KL > 1.5 target, beta / 2 if KL < target / 1.5.

    Attributes:
        target: Wanted mean KL of a token after an iteration's updates, in nats.

    Raises:
        ValueError: If the target is not positive.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", section 4
    (arXiv:1707.06347).
    """

    target: float

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise ValueError(f"target is {self.target}; it must be positive")

    def updated(self, coef: float, *, kl: float) -> float:
        """The next coefficient.

        Args:
            coef: The present coefficient.
            kl: Measured mean KL of a token, in nats.
        """
        if kl > DOUBLING_BAND * self.target:
            return coef * DOUBLING_FACTOR
        if kl < self.target / DOUBLING_BAND:
            return coef / DOUBLING_FACTOR
        return coef
