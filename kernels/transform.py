"""From raw logits to the logits that the softmax sees: scale, soft-cap, temperature.

    final = softcap * tanh(logit_scale * z / softcap) / temperature     with a soft-cap
    final = logit_scale * z / temperature                               without

All kernels split this into `y`, whose order is that of `final`, and one factor `gain > 0`, with
`final = gain * y`. The maximum is taken over `y` and the exponent is `(y - m) * gain`: subtracting
before scaling keeps the digits that `gain * y - gain * m` loses when logits are shifted by 1e4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be finite and above 0")


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """The transform of one call.

    Attributes:
        temperature: Divides the logits, after the soft-cap. Finite and above 0.
        softcap: Bounds the logits to (-softcap, softcap); None for no bound.
        logit_scale: Multiplies the logits, bias included, before the soft-cap.

    Raises:
        ValueError: If one of them is not finite and above 0.
    """

    temperature: float = 1.0
    softcap: float | None = None
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)
        _check_positive("logit_scale", self.logit_scale)
        if self.softcap is not None:
            _check_positive("softcap", self.softcap)

    @cached_property
    def gain(self) -> float:
        """The factor from `y` to the final logits."""
        scale = 1.0 if self.softcap is not None else self.logit_scale
        return scale / self.temperature
