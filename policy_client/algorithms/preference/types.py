"""What the losses on pairs take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairLogps:
    """Log-probs of N preference pairs.

    Attributes:
        chosen: float [N], of the better completions under the policy, in nats.
        rejected: float [N], of the worse ones.
        chosen_tokens: [N], how many tokens each sums over; at least 1.
        rejected_tokens: [N], likewise.
        ref_chosen: float [N], under the reference; None for losses that need none.
        ref_rejected: float [N], likewise.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.chosen.shape
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, chosen {tuple(shape)}; "
                    "give one number for every pair"
                )

    @property
    def chosen_log_ratio(self) -> Tensor:
        """float [N]: log π(chosen) − log π_ref(chosen).

        Raises:
            ValueError: If there are no log-probs of a reference.
        """
        return self.chosen - _required(self.ref_chosen, "ref_chosen")

    @property
    def rejected_log_ratio(self) -> Tensor:
        """float [N]: log π(rejected) − log π_ref(rejected).

        Raises:
            ValueError: If there are no log-probs of a reference.
        """
        return self.rejected - _required(self.ref_rejected, "ref_rejected")

    @property
    def chosen_mean(self) -> Tensor:
        """float [N]: log-prob of the better completion per token."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """float [N]: log-prob of the worse completion per token."""
        return self.rejected / self.rejected_tokens


def check_positive(name: str, value: float) -> None:
    """Refuses a coefficient that makes no sense.

    Raises:
        ValueError: If `value` is not above 0.
    """
    if not value > 0.0:
        raise ValueError(f"{name} is {value}; it must be above 0")


def check_smoothing(label_smoothing: float) -> None:
    """Refuses a share of wrong labels that would turn the loss round.

    Raises:
        ValueError: If it is not in [0, 0.5).
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 0.5)")


def _required(reference_N: Tensor | None, name: str) -> Tensor:
    if reference_N is None:
        raise ValueError(f"{name} is missing; this loss compares the policy with a reference")
    return reference_N
