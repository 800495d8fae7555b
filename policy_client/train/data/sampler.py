"""Which rows come next: endless shuffled epochs whose place can be saved in three numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW_BATCHES = 32
"""With lengths, rows are sorted by length within this many batches, not over the whole epoch."""


class PromptSampler:
    """Gives batches of row numbers, epoch after epoch, every row once an epoch.

    The order of an epoch is a pure function of (seed, epoch), so the state is where we are and not
    a random generator. A batch may hold the end of one epoch and the start of the next: no row is
    dropped, and every batch is full.
    """

    def __init__(
        self, num_examples: int, batch_size: int, seed: int, *, lengths: Sequence[int] | None = None
    ) -> None:
        """Starts at the first epoch.

        Args:
            num_examples: Rows to draw from, at least 1.
            batch_size: Rows a batch, at least 1; may exceed `num_examples`.
            seed: Not negative.
            lengths: Length of each row. If given, rows of a batch have similar lengths.

        Raises:
            ValueError: If a size is below 1, or `lengths` has the wrong length.
        """
        if num_examples < 1 or batch_size < 1:
            raise ValueError(
                f"num_examples={num_examples} and batch_size={batch_size} must be at least 1"
            )
        if lengths is not None and len(lengths) != num_examples:
            raise ValueError(f"lengths has {len(lengths)} entries for {num_examples} rows")
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._seed = seed
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._epoch = 0
        self._position = 0
        self._order = self._epoch_order()

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction of the current one."""
        return self._epoch + self._position / self._num_examples

    def next_batch(self, size: int | None = None) -> list[int]:
        """The next `batch_size` row numbers, or `size` of them."""
        size = self._batch_size if size is None else size
        batch: list[int] = []
        while len(batch) < size:
            if self._position == self._num_examples:
                self._epoch += 1
                self._position = 0
                self._order = self._epoch_order()
            stop = min(self._num_examples, self._position + size - len(batch))
            batch.extend(self._order[self._position : stop].tolist())
            self._position = stop
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where we are; JSON values."""
        return {
            "num_examples": self._num_examples,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `state` was taken.

        Raises:
            ValueError: If it was taken over another number of rows or with another seed.
        """
        for name, mine in (("num_examples", self._num_examples), ("seed", self._seed)):
            if state[name] != mine:
                raise ValueError(
                    f"{name} is {mine}, and the saved sampler had {state[name]}; "
                    "resume with the same data and seed"
                )
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._order = self._epoch_order()

    def _epoch_order(self) -> NDArray[np.int64]:
        generator = np.random.default_rng([self._seed, self._epoch])
        order = generator.permutation(self._num_examples)
        if self._lengths is None:
            return order
        window = WINDOW_BATCHES * self._batch_size
        parts: list[NDArray[np.int64]] = []
        for start in range(0, self._num_examples, window):
            rows = order[start : start + window]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches = [
                rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)
            ]
            parts.extend(batches[i] for i in generator.permutation(len(batches)))
        return np.concatenate(parts)
