"""What the engine tells whoever watches it. The server exports it as Prometheus metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """One forward pass.

    Attributes:
        model: The scorer's name.
        num_items: Sequences in the batch.
        num_tokens: Tokens that somebody asked for.
        num_computed_tokens: Tokens that went through the model: more than `num_tokens` with
            padding, fewer with shared prefixes.
        queue_wait_s: Mean time from admission to the start of the forward pass, in seconds.
        forward_s: Duration of the forward pass, in seconds.
    """

    model: str
    num_items: int
    num_tokens: int
    num_computed_tokens: int
    queue_wait_s: float
    forward_s: float


class EngineObserver(Protocol):
    """Told of what happens. Methods return at once, do not raise, and come from any thread."""

    def batch_done(self, report: BatchReport) -> None:
        """A batch was computed."""

    def queue_changed(self, model: str, num_items: int, num_tokens: int) -> None:
        """The queue of `model` now holds this much."""


class NullObserver:
    """Watches nothing."""

    def batch_done(self, report: BatchReport) -> None:
        """Does nothing."""

    def queue_changed(self, model: str, num_items: int, num_tokens: int) -> None:
        """Does nothing."""
