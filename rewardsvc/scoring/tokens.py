"""Log-probs of given tokens: the second thing that a hosted causal model can answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemError
from rewardsvc.scoring.scorer import Scorer


def _no_floats() -> NDArray[np.float32]:
    return np.empty(0, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenSequence:
    """Tokens whose log-probs are wanted, and what stands before them.

    Attributes:
        prompt_ids: int32 [P], at least one token.
        completion_ids: int32 [C], any number of tokens, none included.
    """

    prompt_ids: NDArray[np.int32]
    completion_ids: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """Log-probs of one sequence's completion tokens.

    Attributes:
        logprobs: float32 [C], log p(token | all before it) in nats; empty with an error.
        entropies: float32 [C], entropy in nats of the distribution that each token was drawn from;
            empty unless asked for.
        error: Set if there are none.
    """

    logprobs: NDArray[np.float32] = field(default_factory=_no_floats)
    entropies: NDArray[np.float32] = field(default_factory=_no_floats)
    error: ItemError | None = None


class TokenScorer(Scorer):
    """A scorer that also gives log-probs of tokens."""

    @abstractmethod
    async def token_logprobs(
        self, sequences: Sequence[TokenSequence], *, temperature: float = 1.0, entropy: bool = False
    ) -> list[TokenScores]:
        """Log-probs under `softmax(logits / temperature)`, one answer a sequence, in order.

        Args:
            sequences: What to look at; a bad one gets an error in its place.
            temperature: Finite and above 0.
            entropy: Whether to give entropies too.

        Raises:
            ServiceError: If the call as a whole cannot be served.
        """
