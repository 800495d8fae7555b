"""Log-probs of given tokens, from hidden states and the output embedding.

Shape letters: N positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rewardsvc.kernels import linear_logprob


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

    A position's numbers do not depend on the others of the call, bit for bit.

    Args:
        hidden_ND: Final hidden states, any float dtype.
        weight_VD: The output embedding, same dtype.
        targets_N: int32 or int64, in [0, V).
        bias_V: Of the output embedding, where there is one.
        rule: From the output embedding's numbers to logits.
        temperature: Finite and above 0.
        entropy: Whether to give entropies too.

    Returns:
        float32 [N] log-probs in nats, and float32 [N] entropies in nats of the tempered
        distribution, or None.

    Raises:
        ValueError: If a target is out of range, or tensors do not fit each other.
    """
    stats = linear_logprob(
        hidden_ND,
        weight_VD,
        targets_N,
        bias=bias_V,
        temperature=temperature,
        softcap=rule.softcap,
        logit_scale=rule.scale,
        entropy=entropy,
    )
    return stats.logp, stats.entropy
