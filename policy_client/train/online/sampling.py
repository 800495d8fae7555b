"""How the next token is drawn from logits.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are sampled.

    Attributes:
        max_new_tokens: Longest completion, in tokens, its end-of-sequence token included.
        temperature: Logits are divided by it. The policy that is trained is the one at this
            temperature.
        top_p: Draw from the smallest set of tokens whose probability reaches it. 1.0 for all.
        top_k: Draw from the k likeliest tokens. 0 for all.
        greedy: Always take the likeliest token; temperature still scales the recorded log-probs.

    Raises:
        ValueError: If a value is out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; it must be positive. For the likeliest token "
                "set greedy"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or 0 for all tokens")

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be drawn at all."""
        return not self.greedy and (self.top_p < 1 or self.top_k > 0)


def draw_tokens(
    logits_NV: Tensor, params: SamplingParams, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The next token of each row, and how likely it was.

    Args:
        logits_NV: float [N, V], raw.
        params: How to draw.
        generator: On the device of the logits; not used when greedy.

    Returns:
        `(tokens_N, logprobs_N, draw_logprobs_N)`: int64 ids; float32 log-probs under the policy,
        which is the softmax of logits / temperature over the whole vocabulary; and float32
        log-probs under the distribution they were drawn from, which differ where top-k or top-p cut
        tokens off. A trainer's importance ratios need the first, since that is what it recomputes.
    """
    logprobs_NV = (logits_NV.float() / params.temperature).log_softmax(-1)
    draw_NV = truncate(logprobs_NV, params) if params.truncates else logprobs_NV
    if params.greedy:
        tokens_N1 = logprobs_NV.argmax(-1, keepdim=True)
    else:
        tokens_N1 = torch.multinomial(draw_NV.exp(), 1, generator=generator)
    logprobs_N = logprobs_NV.gather(1, tokens_N1).squeeze(1)
    draw_logprobs_N = draw_NV.gather(1, tokens_N1).squeeze(1) if params.truncates else logprobs_N
    return tokens_N1.squeeze(1), logprobs_N, draw_logprobs_N


def truncate(logprobs_NV: Tensor, params: SamplingParams) -> Tensor:
    """Top-k, then top-p, renormalised: float [N, V] log-probs, -inf where a token is cut off.

    The likeliest token always stays. Of tokens equally likely at the border of top-k, all stay.
    """
    if 0 < params.top_k < logprobs_NV.shape[1]:
        border_N1 = logprobs_NV.topk(params.top_k, dim=-1).values[:, -1:]
        logprobs_NV = logprobs_NV.masked_fill(logprobs_NV < border_N1, -torch.inf)
        logprobs_NV = logprobs_NV.log_softmax(-1)
    if params.top_p < 1:
        sorted_NV, order_NV = logprobs_NV.sort(-1, descending=True)
        probs_NV = sorted_NV.exp()
        # A token goes if the tokens before it reach top_p already, so the first never does.
        cut_NV = (probs_NV.cumsum(-1) - probs_NV) >= params.top_p
        cut_NV[:, 0] = False
        logprobs_NV = logprobs_NV.masked_fill(
            torch.zeros_like(cut_NV).scatter(1, order_NV, cut_NV), -torch.inf
        )
        logprobs_NV = logprobs_NV.log_softmax(-1)
    return logprobs_NV
