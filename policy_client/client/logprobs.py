"""What a call for log-probs gives back.

Shapes: N sequences, T padded tokens, C completion tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rewardsvc.errors import ItemError
from rewardsvc.policy_client.client.errors import ScoringFailed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLogProbs:
    """Log-probs of the completion tokens of N sequences, in the order of the sequences.

    Attributes:
        logprobs: [N] arrays float32 [C]: log p(token | all before it), in nats; NaN for a
            sequence that failed.
        entropies: [N] arrays float32 [C], in nats, of the distribution each token was drawn from;
            None unless asked for.
        errors: [N]; why a sequence has none.
        versions: [N], the model's version for each sequence.
    """

    logprobs: Sequence[NDArray[np.float32]]
    entropies: Sequence[NDArray[np.float32]] | None
    errors: Sequence[ItemError | None]
    versions: Sequence[str]

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def version(self) -> str:
        """The model's version; if there were several, all of them with "|" between."""
        return "|".join(dict.fromkeys(version for version in self.versions if version))

    def padded(
        self,
        *,
        length: int | None = None,
        side: Literal["left", "right"] = "right",
        fill: float = 0.0,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The log-probs as one array.

        Args:
            length: T; the longest sequence if None.
            side: Where the padding goes.
            fill: The value of padding and of the tokens of failed sequences.

        Returns:
            float32 [N, T] and a mask bool [N, T], True where there is a log-prob. A failed
            sequence is masked as a whole.

        Raises:
            ValueError: If a sequence is longer than `length`.
        """
        return self._padded(self.logprobs, length, side, fill)

    def padded_entropies(
        self,
        *,
        length: int | None = None,
        side: Literal["left", "right"] = "right",
        fill: float = 0.0,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The entropies as one array; see `padded`.

        Raises:
            ValueError: If a sequence is longer than `length`, or no entropies were asked for.
        """
        if self.entropies is None:
            raise ValueError("there are no entropies; call token_logprobs with entropy=True")
        return self._padded(self.entropies, length, side, fill)

    def raise_for_errors(self) -> None:
        """Raises if a sequence has no log-probs.

        Raises:
            ScoringFailed: Names the first such sequence by its position and holds them all.
        """
        failed = [(str(i), e) for i, e in enumerate(self.errors) if e is not None]
        if failed:
            raise ScoringFailed(failed, len(self))

    def _padded(
        self,
        rows: Sequence[NDArray[np.float32]],
        length: int | None,
        side: Literal["left", "right"],
        fill: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if side not in ("left", "right"):
            raise ValueError(f"side is {side!r}; it must be 'left' or 'right'")
        longest = max((len(row) for row in rows), default=0)
        if length is not None and length < longest:
            raise ValueError(f"length is {length}, and the longest sequence has {longest} tokens")
        num_columns = longest if length is None else length
        values_NT = np.full((len(rows), num_columns), fill, np.float32)
        mask_NT = np.zeros((len(rows), num_columns), np.bool_)
        for index, row in enumerate(rows):
            if self.errors[index] is not None:
                continue
            columns = (
                slice(0, len(row))
                if side == "right"
                else slice(num_columns - len(row), num_columns)
            )
            values_NT[index, columns] = row
            mask_NT[index, columns] = True
        return values_NT, mask_NT
