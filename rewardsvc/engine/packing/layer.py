"""What one call of attention asks for, less queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """What a token may attend among those of its sequence. Stands in for a mask tensor.

    Attributes:
        causal: Only what is before it, and itself.
        window: Causal: only the last `window` of these. Bidirectional: only what is at most
            `window` away. None: all.
    """

    causal: bool
    window: int | None = None

    def reaches(self, length: int) -> bool:
        """Whether the window leaves nothing out of sequences of this length."""
        if self.window is None:
            return True
        return self.window >= (length if self.causal else length - 1)

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        """bool [Q, K], for the positions of queries [Q] and keys [K]."""
        away = queries[:, None] - keys[None, :]
        allowed = away >= 0 if self.causal else away == away
        if self.window is not None:
            allowed = allowed & (away < self.window if self.causal else away.abs() <= self.window)
        return allowed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """See the module's text.

    Attributes:
        mask: Who attends whom.
        scale: The products of queries and keys are multiplied by it.
        softcap: Then drawn into (-softcap, softcap) by tanh.
        sinks: [H], a logit a query head that is in the softmax and has no value (gpt-oss).
    """

    mask: Mask
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
