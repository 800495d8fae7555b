"""What to do next for one call: which RPCs to start, what to make of those that ended.

Theory of operation. A `Job` holds the rows of one call, cut into chunks. Its driver (`sync`,
`aio`) repeats three steps until the job is done: start the attempts that `starts` gives; wait until
one ends, or for `wait_s`; report it to `succeeded` or `failed`. The job never waits and knows no
clock but the `now` that it is given, so all of its decisions can be tested without a server.

Rows with a retryable item error go into a chunk of their own, which is *optional*: the error is an
answer already, and stays the answer if sending again does not work out in time.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from google.protobuf.message import Message

from rewardsvc.errors import ItemError, ItemErrorCode
from rewardsvc.policy_client.client.addresses import AddressPool
from rewardsvc.policy_client.client.chunks import (
    border_before,
    plan_chunks,
    size_in_message,
)
from rewardsvc.policy_client.client.errors import (
    CallFacts,
    RewardClientError,
    RpcFailure,
    ServerBug,
    error_of,
)
from rewardsvc.policy_client.client.settings import ClientSettings

# One for all calls: seeding a generator costs more than the rest of a small job. Children that are
# forked must not wait in step.
_JITTER = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_JITTER.seed)

# gRPC ends an RPC at its deadline; this much later the job no longer relies on it.
_GRACE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnv:
    """What all jobs of a client share, and when this one has to be done.

    Attributes:
        settings: The client's.
        pool: The addresses.
        started_at: When the call began, on the driver's clock, in seconds.
        timeout_s: Seconds that the call may take.
        priority: As on the wire.
        rng: Gives the jitter.
    """

    settings: ClientSettings
    pool: AddressPool
    started_at: float
    timeout_s: float
    priority: int = 0
    rng: random.Random = _JITTER


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    rows: Sequence[int]
    num_failures: int = 0
    # How often these rows have been sent before and came back with a retryable item error.
    num_item_failures: int = 0
    last_failure: RpcFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """One RPC to start now.

    Attributes:
        method: Name of the RPC.
        address: Where.
        request: What to send.
        timeout_s: The deadline for the wire, in seconds from now.
        chunk: The rows it is about.
    """

    method: str
    address: str
    request: Message
    timeout_s: float
    chunk: _Chunk


class Job(ABC):
    """One call. See the module's docstring for how it is driven."""

    method: ClassVar[str]

    def __init__(self, env: JobEnv, what: str) -> None:
        """Makes a job without chunks; subclasses add them.

        Args:
            env: The surroundings.
            what: The call in words, for error messages.
        """
        self._env = env
        self._what = what
        self._deadline = env.started_at + env.timeout_s
        self._waiting: list[tuple[float, int, _Chunk]] = []
        self._sequence = itertools.count()
        self._num_in_flight = 0

    @property
    def done(self) -> bool:
        """Whether every row has its answer."""
        return not self._waiting and not self._num_in_flight

    @property
    def is_single(self) -> bool:
        """Whether one attempt is in flight and nothing else is left to start."""
        return self._num_in_flight == 1 and not self._waiting

    def starts(self, now: float) -> list[Attempt]:
        """The attempts to start at `now`.

        Raises:
            DeadlineExceeded: If the deadline has passed and rows have no answer.
        """
        if now >= self._deadline:
            self._drop_waiting(now)
        if now >= self._deadline + _GRACE_S and self._num_in_flight:
            expired = RpcFailure("DEADLINE_EXCEEDED", "the deadline passed, and no RPC has ended")
            raise error_of(expired, self._facts("", 1, now))
        attempts = []
        while (
            self._waiting
            and self._waiting[0][0] <= now
            and self._num_in_flight < self._env.settings.max_in_flight
        ):
            _, _, chunk = heapq.heappop(self._waiting)
            self._num_in_flight += 1
            attempts.append(
                Attempt(
                    method=self.method,
                    address=self._env.pool.acquire(now),
                    request=self._request(chunk.rows),
                    timeout_s=self._deadline - now,
                    chunk=chunk,
                )
            )
        return attempts

    def wait_s(self, now: float) -> float:
        """Seconds after which `starts` should be asked again even if no RPC ended."""
        wake_at = self._deadline if self._waiting else self._deadline + _GRACE_S
        if self._waiting and self._num_in_flight < self._env.settings.max_in_flight:
            wake_at = min(wake_at, self._waiting[0][0])
        return max(0.0, wake_at - now)

    def succeeded(self, attempt: Attempt, response: Message, now: float) -> None:
        """An attempt was answered.

        Raises:
            ServerBug: If the reply contradicts the contract.
        """
        self._num_in_flight -= 1
        self._env.pool.succeeded(attempt.address)
        chunk = attempt.chunk
        try:
            again = self._accept(chunk.rows, response)
        except ServerBug as bug:
            facts = self._facts(attempt.address, chunk.num_failures + 1, now)
            raise ServerBug(f"{facts}: {bug} (server and client do not fit)") from None
        policy = self._env.settings.retry
        num_item_failures = chunk.num_item_failures + 1
        if again and num_item_failures < policy.max_item_attempts:
            start = now + policy.backoff_s(num_item_failures, self._env.rng)
            if start < self._deadline:
                self._add(_Chunk(rows=again, num_item_failures=num_item_failures), start)

    def failed(self, attempt: Attempt, failure: RpcFailure, now: float) -> None:
        """An attempt failed; it is tried again where that is safe and there is time.

        Raises:
            RewardClientError: The typed error, if there will be no other attempt.
        """
        self._num_in_flight -= 1
        self._env.pool.failed(attempt.address, failure, now)
        chunk = attempt.chunk
        if failure.too_large and len(chunk.rows) > 1:
            # This server takes smaller messages than the client was told: halve until they fit.
            groups = [self._group(row) for row in chunk.rows]
            middle = border_before(groups, 0, len(chunk.rows) // 2)
            self._add(replace(chunk, rows=chunk.rows[:middle]), now)
            self._add(replace(chunk, rows=chunk.rows[middle:]), now)
            return
        if failure.too_large and self._reject(
            chunk.rows[0], ItemError(ItemErrorCode.TOO_LONG, failure.details)
        ):
            return
        num_failures = chunk.num_failures + 1
        delay_s = self._env.settings.retry.delay_s(
            failure,
            num_failures=num_failures,
            seconds_left=self._deadline - now,
            other_address=self._env.pool.any_healthy(now),
            rng=self._env.rng,
        )
        if delay_s is not None:
            again = replace(chunk, num_failures=num_failures, last_failure=failure)
            self._add(again, now + delay_s)
        elif not chunk.num_item_failures:
            raise self._error(failure, attempt.address, chunk, num_failures, now)

    def abandoned(self, attempt: Attempt) -> None:
        """The driver gave an attempt up; nothing is known of its outcome."""
        self._num_in_flight -= 1
        self._env.pool.released(attempt.address)

    @abstractmethod
    def _request(self, rows: Sequence[int]) -> Message:
        """The request for these rows."""

    @abstractmethod
    def _accept(self, rows: Sequence[int], response: Message) -> list[int]:
        """Keeps the answers of `rows`; returns those that may be sent again."""

    def _group(self, row: int) -> Hashable:
        """Equal for rows that belong together."""
        return row

    def _reject(self, row: int, error: ItemError) -> bool:
        """Keeps an error as the answer of `row`; False if the call has no items."""
        return False

    def _add(self, chunk: _Chunk, start: float) -> None:
        heapq.heappush(self._waiting, (start, next(self._sequence), chunk))

    def _add_rows(self, rows: Sequence[int], messages: Sequence[Message]) -> None:
        """Cuts `rows` into chunks; `messages` are those of the rows.

        Rows of one group go into one chunk wherever they stand: some scorers compare them.
        """
        settings = self._env.settings
        room = settings.max_message_bytes - self._request([]).ByteSize()
        sizes = [size_in_message(message.ByteSize()) for message in messages]
        groups: list[Hashable] | None = None
        if len(rows) > settings.max_samples_per_call or sum(sizes) > room:
            group_of = [self._group(row) for row in rows]
            first = {group: place for place, group in reversed([*enumerate(group_of)])}
            order = sorted(range(len(rows)), key=lambda place: first[group_of[place]])
            rows, messages = [rows[i] for i in order], [messages[i] for i in order]
            sizes, groups = [sizes[i] for i in order], [group_of[i] for i in order]
        chunks, too_large = plan_chunks(
            sizes, max_items=settings.max_samples_per_call, max_bytes=room, groups=groups
        )
        for chunk in chunks:
            self._add(_Chunk(rows=rows[chunk.start : chunk.stop]), self._env.started_at)
        for position in too_large:
            size = messages[position].ByteSize()
            self._reject(
                rows[position],
                ItemError(
                    ItemErrorCode.TOO_LONG,
                    f"the sample takes {size} bytes, and max_message_bytes={room} leaves no room "
                    "for it; raise it here and on the server, or send less",
                ),
            )

    def _drop_waiting(self, now: float) -> None:
        required = [chunk for _, _, chunk in self._waiting if not chunk.num_item_failures]
        self._waiting.clear()
        if required:
            expired = RpcFailure("DEADLINE_EXCEEDED", "the deadline passed before this was sent")
            raise self._error(expired, "", required[0], required[0].num_failures, now)

    def _error(
        self, failure: RpcFailure, address: str, chunk: _Chunk, num_attempts: int, now: float
    ) -> RewardClientError:
        last = chunk.last_failure
        if last is not None and last.code != failure.code:
            details = f"{failure.details}; the attempt before ended with {last.code}: "
            failure = replace(failure, details=f"{details}{last.details}")
        return error_of(failure, self._facts(address, num_attempts, now))

    def _facts(self, address: str, num_attempts: int, now: float) -> CallFacts:
        return CallFacts(
            what=self._what,
            address=address,
            num_attempts=num_attempts,
            elapsed_s=now - self._env.started_at,
            timeout_s=self._env.timeout_s,
        )
