"""What the log-prob functions return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopK:
    """The most likely tokens of each row, most likely first; of equals, the lowest id first.

    Attributes:
        logp: float32 [..., k], their log-probs in nats. No gradient flows through them.
        ids: int64 [..., k].
    """

    logp: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenStats:
    """What one read of the logits gives for each row; every row that is left out holds zeros.

    float64 inputs give float64 outputs, all others float32.

    Attributes:
        logp: [...], log-prob of the row's token in nats.
        entropy: [...], entropy of the row's distribution in nats; None unless asked for.
        lse: [...], log-sum-exp of the row's final logits (after scale, soft-cap and temperature).
        topk: The most likely tokens; None unless asked for.
    """

    logp: Tensor
    entropy: Tensor | None
    lse: Tensor
    topk: TopK | None
