"""Log-probs of given tokens, from hidden states and the output embedding.

Shape letters: N positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ROWS = 1024
"""Positions whose logits exist at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitRule:
    """What a model does to the output embedding's numbers before they are its logits.

    Attributes:
        scale: They are multiplied by it (Cohere, Granite).
        softcap: Then drawn into (-softcap, softcap) by tanh (Gemma 2).
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, numbers: Tensor) -> Tensor:
        """The logits, of the same shape, float32."""
        logits = numbers.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = (logits / self.softcap).tanh() * self.softcap
        return logits


PLAIN_LOGITS = LogitRule()


def linear_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    rule: LogitRule = PLAIN_LOGITS,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(rule(hidden · weightᵀ + bias) / temperature)[target], without a [N, V] tensor.

    Args:
        hidden_ND: Final hidden states, any float dtype.
        weight_VD: The output embedding, same dtype.
        targets_N: int64, in [0, V).
        bias_V: Of the output embedding, where there is one.
        rule: From the output embedding's numbers to logits.
        temperature: Finite and above 0.
        entropy: Whether to give entropies too.

    Returns:
        float32 [N] log-probs in nats, and float32 [N] entropies in nats of the tempered
        distribution, or None.
    """
    logprobs, entropies = [], []
    for start in range(0, len(hidden_ND), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        logits_NV = rule.apply(F.linear(hidden_ND[rows], weight_VD, bias_V)) / temperature
        log_z_N = logits_NV.logsumexp(-1)
        chosen_N = logits_NV.gather(-1, targets_N[rows, None]).squeeze(-1)
        logprobs.append(chosen_N - log_z_N)
        if entropy:
            # entr(p) = -p log p is 0 at p = 0, where p · log p would be NaN.
            entropies.append(torch.special.entr((logits_NV - log_z_N[:, None]).exp()).sum(-1))
    empty_N = hidden_ND.new_empty(0, dtype=torch.float32)
    logprobs_N = torch.cat(logprobs) if logprobs else empty_N
    if not entropy:
        return logprobs_N, None
    return logprobs_N, torch.cat(entropies) if entropies else empty_N
