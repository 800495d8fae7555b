"""How the next token is drawn from logits.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionSeeds:
    """A source of randomness for each completion: what it draws does not depend on its neighbours.

    Attributes:
        seeds: One for each completion, in [0, 2^63).
    """

    seeds: tuple[int, ...]

    @classmethod
    def derived(cls, seed: int, numbers: Sequence[int]) -> CompletionSeeds:
        """Those of the completions of these numbers in a batch that has the seed `seed`.

        Source: Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators",
            doi:10.1145/2660193.2660195, figure 17: neighbouring numbers get unrelated seeds.
        """
        return cls(seeds=tuple(_mixed(seed + 0x9E3779B97F4A7C15 * (n + 1)) for n in numbers))

    def uniforms(self, num_tokens: int, device: torch.device) -> Tensor:
        """float64 [completions, num_tokens] on `device`, in [0, 1)."""
        rows = [
            torch.rand(num_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(s))
            for s in self.seeds
        ]
        return torch.stack(rows).to(device)


Randomness: TypeAlias = torch.Generator | CompletionSeeds | None
"""Of a rollout: one generator for all completions, a seed for each, or the global generator."""


def _mixed(number: int) -> int:
    number &= _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return (number ^ (number >> 31)) >> 1


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
    logits_NV: Tensor, params: SamplingParams, source: torch.Generator | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The next token of each row, and how likely it was.

    Args:
        logits_NV: float [N, V], raw.
        params: How to draw.
        source: A generator on the device of the logits, or uniform numbers, float64 [N]; not used
            when greedy.

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
        tokens_N1 = _pick(draw_NV.exp(), source)
    logprobs_N = logprobs_NV.gather(1, tokens_N1).squeeze(1)
    draw_logprobs_N = draw_NV.gather(1, tokens_N1).squeeze(1) if params.truncates else logprobs_N
    return tokens_N1.squeeze(1), logprobs_N, draw_logprobs_N


def _pick(probs_NV: Tensor, source: torch.Generator | Tensor | None) -> Tensor:
    """int64 [N, 1]: a token of each row. From uniform numbers by inverting the distribution."""
    if not isinstance(source, Tensor):
        return torch.multinomial(probs_NV, 1, generator=source)
    sums_NV = probs_NV.double().cumsum(-1)
    total_N = sums_NV[:, -1]
    # Below the total even after rounding: behind it there is no token, or one that was cut off.
    at_N = torch.minimum(source * total_N, total_N.nextafter(torch.zeros_like(total_N)))
    return torch.searchsorted(sums_NV, at_N[:, None], right=True)


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
