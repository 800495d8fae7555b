"""What every RPC has in common: a deadline, a call context, and errors that become statuses."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from rewardsvc.errors import (
    DeadlinePassedError,
    InvalidRequestError,
    QueueFullError,
    ServiceError,
    status_of,
)
from rewardsvc.scoring.context import CallContext, call_context

log = logging.getLogger(__name__)

RETRY_DELAY_KEY = "retry-delay-ms"
"""Trailing metadata of RESOURCE_EXHAUSTED: when to try again."""

MAX_PRIORITY = 100
NO_DEADLINE_S = 10 * 365 * 86_400.0
"""gRPC reports a call without a deadline as one that is centuries away."""


@asynccontextmanager
async def statuses(context: Any) -> AsyncIterator[None]:
    """Turns what the block raises into the call's status, by the table in `rewardsvc.errors`."""
    try:
        yield
    except ServiceError as error:
        if isinstance(error, QueueFullError):
            context.set_trailing_metadata(((RETRY_DELAY_KEY, str(error.retry_delay_ms)),))
        await context.abort(getattr(grpc.StatusCode, status_of(error)), str(error))
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except Exception:
        incident = uuid.uuid4().hex[:12]
        log.exception("internal error %s", incident)
        await context.abort(
            grpc.StatusCode.INTERNAL, f"internal error; the server's log has it as {incident}"
        )


def checked_priority(priority: int) -> int:
    """`priority`, if it is one.

    Raises:
        InvalidRequestError: If it is out of range.
    """
    if abs(priority) > MAX_PRIORITY:
        raise InvalidRequestError(
            f"priority: {priority} is out of range; use -{MAX_PRIORITY} to {MAX_PRIORITY}"
        )
    return priority


@asynccontextmanager
async def deadline(
    context: Any, default_s: float, *, priority: int = 0, client: str = ""
) -> AsyncIterator[CallContext]:
    """Runs the block under the caller's deadline, or `default_s` seconds if it gave none.

    Raises:
        DeadlinePassedError: If the block did not end in time.
        InvalidRequestError: If the priority is out of range.
    """
    checked_priority(priority)
    remaining = context.time_remaining()
    if remaining is None or not math.isfinite(remaining) or remaining > NO_DEADLINE_S:
        remaining = default_s
    call = CallContext(deadline=time.monotonic() + remaining, priority=priority, client_id=client)
    try:
        async with asyncio.timeout(remaining):
            with call_context(call):
                yield call
    except TimeoutError:
        raise DeadlinePassedError(
            f"the deadline of {remaining:.3f} s passed; send fewer samples or allow more time"
        ) from None
