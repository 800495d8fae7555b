"""When to try again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rewardsvc.policy_client.client.errors import RpcFailure

_RETRYABLE = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client retries: exponential backoff with full jitter, within the call's deadline.

    Only UNAVAILABLE and RESOURCE_EXHAUSTED are retried: both say that the work was not done, or,
    when a connection broke, that its reply is lost; the contract makes repeating safe. By default
    the deadline alone ends the attempts, so that training outlives a restart of the server.

    Attributes:
        initial_backoff_s: Upper bound of the first wait, in seconds; above 0.
        max_backoff_s: Upper bound of every wait that the server did not ask for, in seconds.
        multiplier: Growth of the bound from one wait to the next; at least 1.
        max_attempts: How often one RPC is tried at most; None for no limit but the deadline.
        max_item_attempts: How often one sample with a retryable item error is sent at most.

    Source: full jitter as in M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015.
    """

    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    multiplier: float = 2.0
    max_attempts: int | None = None
    max_item_attempts: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.initial_backoff_s <= self.max_backoff_s:
            raise ValueError(
                "RetryPolicy needs 0 < initial_backoff_s <= max_backoff_s, not "
                f"{self.initial_backoff_s} and {self.max_backoff_s}"
            )
        if not self.multiplier >= 1:
            raise ValueError(f"RetryPolicy.multiplier is {self.multiplier}; it must be at least 1")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError(
                f"RetryPolicy.max_attempts is {self.max_attempts}; it must be at least 1, or None"
            )
        if self.max_item_attempts < 1:
            raise ValueError(
                f"RetryPolicy.max_item_attempts is {self.max_item_attempts}; it must be at least 1"
            )

    def backoff_s(self, num_failures: int, rng: random.Random) -> float:
        """A random wait after the `num_failures`-th failure in a row, in seconds."""
        bound = self.initial_backoff_s
        for _ in range(num_failures - 1):
            if bound >= self.max_backoff_s or self.multiplier == 1:
                break
            bound *= self.multiplier
        return rng.uniform(0.0, min(bound, self.max_backoff_s))

    def delay_s(
        self,
        failure: RpcFailure,
        *,
        num_failures: int,
        seconds_left: float,
        other_address: bool,
        rng: random.Random,
    ) -> float | None:
        """How long to wait before the next attempt, or None if there should be none.

        Args:
            failure: What happened.
            num_failures: How often this RPC has failed now, at least 1.
            seconds_left: Seconds until the deadline.
            other_address: Whether an address that is not known to fail can be tried instead.
            rng: Gives the jitter.

        Returns:
            Seconds, below `seconds_left`; at least the server's `retry_delay_s` unless the next
            attempt goes elsewhere.
        """
        if failure.code not in _RETRYABLE or failure.too_large or seconds_left <= 0:
            return None
        if self.max_attempts is not None and num_failures >= self.max_attempts:
            return None
        if other_address:
            return 0.0
        delay = (failure.retry_delay_s or 0.0) + self.backoff_s(num_failures, rng)
        return delay if delay < seconds_left else None
