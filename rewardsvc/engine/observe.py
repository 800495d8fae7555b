"""What the engine tells whoever watches it. The server exports it as Prometheus metrics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
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


class Reuse(StrEnum):
    """Where an answer came from that was not computed for the item itself."""

    IN_FLIGHT = "in_flight"
    CACHE = "cache"


class EngineObserver(Protocol):
    """Told of what happens. Methods return at once, do not raise, and come from any thread."""

    def batch_done(self, report: BatchReport) -> None:
        """A batch was computed."""

    def queue_changed(self, model: str, num_items: int, num_tokens: int) -> None:
        """The queue of `model` now holds this much."""

    def reused(self, model: str, reuse: Reuse, num_items: int) -> None:
        """So many items found their answer, or somebody who computes it, already there."""

    def served(self, client: str, num_tokens: int) -> None:
        """So many tokens of a client's items were answered, computed or reused."""


class NullObserver:
    """Watches nothing."""

    def batch_done(self, report: BatchReport) -> None:
        """Does nothing."""

    def queue_changed(self, model: str, num_items: int, num_tokens: int) -> None:
        """Does nothing."""

    def reused(self, model: str, reuse: Reuse, num_items: int) -> None:
        """Does nothing."""

    def served(self, client: str, num_tokens: int) -> None:
        """Does nothing."""
