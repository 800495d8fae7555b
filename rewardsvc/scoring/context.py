"""What a scorer may want to know of the call it works for, carried by a context variable.

A `Scorer` takes samples and nothing else, so that scorers nest. Who calls, how urgent it is and
until when the answer is wanted reach the batcher through here. Tasks inherit it; threads do not.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """One call.

    Attributes:
        deadline: When nobody waits for the answer any more, on `time.monotonic()`'s clock.
            Infinity if the caller gave none.
        priority: Higher is served first; -100 to 100.
        client_id: Names the caller, for fair sharing and metrics.
    """

    deadline: float = float("inf")
    priority: int = 0
    client_id: str = ""

    def seconds_left(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()


_current: contextvars.ContextVar[CallContext] = contextvars.ContextVar(
    "rewardsvc_call",
    default=CallContext(),  # noqa: B039 - frozen
)


def current_call() -> CallContext:
    """The call that this task works for; one without a deadline outside any call."""
    return _current.get()


@contextmanager
def call_context(call: CallContext) -> Iterator[CallContext]:
    """Makes `call` the current one within the block."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)
