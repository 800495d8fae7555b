"""What to do next for one bidirectional stream.

Theory of operation. A sample is *pending* from `add` until its answer is handed out. The driver
opens a connection when `connect_to` names an address, sends what `messages` gives, and reports what
happens as events. A connection that breaks makes every pending sample unsent again, so the next one
carries it; an answer is handed out only for a pending sample, so none comes twice. Like a job, the
state never waits and knows no clock but `now`.

A stream may outlive any deadline, so each sample has its own. A sample that is late on a working
connection gets a DEADLINE_EXCEEDED item error; if the connection is down for that long, the stream
raises. The deadline on the wire, `MAX_CONNECTION_AGE_S`, is no more than the age at which a
connection is replaced; what the server could not finish by then is sent again.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rewardsvc.errors import ItemError, ItemErrorCode, ItemFailure
from rewardsvc.policy_client.client.calls import is_retryable
from rewardsvc.policy_client.client.chunks import plan_chunks, size_in_message
from rewardsvc.policy_client.client.decode import decode_items
from rewardsvc.policy_client.client.encode import encode_sample
from rewardsvc.policy_client.client.errors import CallFacts, RpcFailure, ServerBug, error_of
from rewardsvc.policy_client.client.jobs import JobEnv
from rewardsvc.policy_client.client.scores import ItemScore
from rewardsvc.policy_client.client.types import ScoreItem
from rewardsvc.v1 import reward_pb2 as pb

DEFAULT_WINDOW = 256

MAX_CONNECTION_AGE_S = 3600.0

# Per-item forms of a call-level failure: retried until the sample's own deadline, as for a call.
# The server's DEADLINE_EXCEEDED is about the connection's deadline, of which the sample knows
# nothing.
_CALL_LEVEL = frozenset(
    {ItemErrorCode.QUEUE_FULL, ItemErrorCode.UNAVAILABLE, ItemErrorCode.DEADLINE_EXCEEDED}
)

Answer: TypeAlias = tuple[str, ItemScore]


@dataclass(frozen=True, slots=True)
class Fed:
    """The source gave a sample: a `ScoreItem` or its fields."""

    item: ScoreItem | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SourceEnded:
    """The source gives no more, because of `error` if there is one."""

    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A message came."""

    response: pb.ScoreStreamResponse


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection ended; without a failure if the server ended it in good order."""

    failure: RpcFailure | None = None


Event: TypeAlias = "Fed | SourceEnded | Received | Ended"


@dataclass(slots=True, kw_only=True)
class _Pending:
    sample: pb.Sample
    deadline: float
    num_item_failures: int = 0


class StreamState:
    """One `score_stream`. See the module's docstring for how it is driven.

    Attributes:
        connected: Whether the driver holds a connection.
        source_ended: Whether no more samples come.
    """

    def __init__(self, env: JobEnv, scorer: str) -> None:
        """Makes a state without samples.

        Args:
            env: The surroundings; `timeout_s` is for each sample from its `Fed` event.
            scorer: The scorer's name.
        """
        self.connected = False
        self.source_ended = False
        self._env = env
        self._scorer = scorer
        self._address = ""
        # In order of arrival, which is the order of the deadlines.
        self._pending: dict[str, _Pending] = {}
        self._unsent: list[tuple[float, int, str]] = []
        self._num_fed = 0
        self._num_queued = 0
        self._num_breaks = 0
        self._connect_at = env.started_at

    @property
    def finished(self) -> bool:
        """Whether every sample has its answer and no more come."""
        return self.source_ended and not self._pending

    def connect_to(self, now: float) -> str | None:
        """The address to open a connection to now, if one is needed."""
        if self.connected or not self._pending or now < self._connect_at:
            return None
        self.connected = True
        self._address = self._env.pool.acquire(now)
        return self._address

    def messages(self, now: float) -> list[pb.ScoreStreamRequest]:
        """What to send on the connection now."""
        if not self.connected:
            return []
        samples = []
        while self._unsent and self._unsent[0][0] <= now:
            pending = self._pending.get(heapq.heappop(self._unsent)[2])
            if pending is not None:
                samples.append(pending.sample)
        chunks, _ = plan_chunks(
            [size_in_message(sample.ByteSize()) for sample in samples],
            max_items=self._env.settings.max_samples_per_call,
            max_bytes=self._room(),
        )
        return [self._message(samples[chunk.start : chunk.stop]) for chunk in chunks]

    def wait_s(self, now: float) -> float:
        """Seconds after which the driver should look again even without an event."""
        wake_at = now + self._env.timeout_s
        if self._pending:
            wake_at = min(wake_at, next(iter(self._pending.values())).deadline)
            if not self.connected:
                wake_at = min(wake_at, self._connect_at)
            elif self._unsent:
                wake_at = min(wake_at, self._unsent[0][0])
        return max(0.0, wake_at - now)

    def handle(self, event: Event, now: float) -> list[Answer]:
        """What an event brings: the answers to hand out.

        Raises:
            RewardClientError: If the stream cannot go on.
            TypeError: If a field of a sample has the wrong type.
            ValueError: If an id is in flight already.
        """
        match event:
            case Fed(item):
                return self._feed(item, now)
            case Received(response):
                return self._receive(response, now)
            case Ended(failure):
                self._end(failure, now)
            case SourceEnded(error):
                self.source_ended = True
                if error is not None:
                    raise error
        return []

    def expired(self, now: float) -> list[Answer]:
        """Item errors of the samples whose time is over; to be asked when no event is waiting.

        Raises:
            DeadlineExceeded: If they are late because there is no connection.
        """
        answers: list[Answer] = []
        for sample_id, pending in list(self._pending.items()):
            if pending.deadline > now:
                break
            if not self.connected:
                failure = RpcFailure("DEADLINE_EXCEEDED", "no connection for this long")
                raise error_of(failure, self._facts(now))
            del self._pending[sample_id]
            error = ItemError(
                ItemErrorCode.DEADLINE_EXCEEDED,
                f"no answer within timeout_s={self._env.timeout_s:g}",
            )
            answers.append((sample_id, ItemScore(id=sample_id, error=error)))
        return answers

    def closed(self) -> None:
        """The driver gave the connection up."""
        if self.connected:
            self.connected = False
            self._env.pool.released(self._address)

    def _feed(self, raw: ScoreItem | Mapping[str, Any], now: float) -> list[Answer]:
        position = self._num_fed
        self._num_fed += 1
        item = raw if isinstance(raw, ScoreItem) else ScoreItem(**raw)
        sample_id = item.id or str(position)
        if sample_id in self._pending:
            raise ValueError(
                f"sample {position}: id {sample_id!r} is in flight already; ids match the answers "
                "of a stream, so they must be unique (leave them empty to use the position)"
            )
        try:
            sample = encode_sample(item)
            sample.id = sample_id
            if size_in_message(sample.ByteSize()) > self._room():
                raise ItemFailure(
                    ItemErrorCode.TOO_LONG,
                    f"the sample takes {sample.ByteSize()} bytes, over max_message_bytes="
                    f"{self._env.settings.max_message_bytes}",
                )
        except ItemFailure as failure:
            return [(sample_id, ItemScore(id=sample_id, error=failure.error))]
        except (TypeError, ValueError) as error:
            raise type(error)(f"sample {position}: {error}") from None
        self._pending[sample_id] = _Pending(sample=sample, deadline=now + self._env.timeout_s)
        self._queue(sample_id, now)
        return []

    def _receive(self, response: pb.ScoreStreamResponse, now: float) -> list[Answer]:
        try:
            items = decode_items(response.batch, list(response.ids))
        except ServerBug as bug:
            raise ServerBug(f"{self._facts(now)}: {bug} (server and client do not fit)") from None
        answers = []
        for item in items:
            pending = self._pending.get(item.id)
            if pending is not None and not self._sent_again(pending, item, now):
                del self._pending[item.id]
                answers.append((item.id, item))
        if answers:
            self._num_breaks = 0
        return answers

    def _sent_again(self, pending: _Pending, item: ItemScore, now: float) -> bool:
        if item.error is None:
            return False
        pending.num_item_failures += 1
        policy = self._env.settings.retry
        if item.error.code not in _CALL_LEVEL and (
            not is_retryable(item.error) or pending.num_item_failures >= policy.max_item_attempts
        ):
            return False
        start = now + policy.backoff_s(pending.num_item_failures, self._env.rng)
        if start >= pending.deadline:
            return False
        self._queue(item.id, start)
        return True

    def _end(self, failure: RpcFailure | None, now: float) -> None:
        self.connected = False
        if failure is None and self.finished:
            self._env.pool.succeeded(self._address)
            return
        if failure is None or failure.code == "DEADLINE_EXCEEDED":
            said = failure.details if failure else "the server ended the stream before its answers"
            failure = RpcFailure("UNAVAILABLE", said)
            self._env.pool.released(self._address)
        else:
            self._env.pool.failed(self._address, failure, now)
        self._num_breaks += 1
        first = next(iter(self._pending.values()), None)
        delay_s = self._env.settings.retry.delay_s(
            failure,
            num_failures=self._num_breaks,
            seconds_left=first.deadline - now if first else self._env.timeout_s,
            other_address=self._env.pool.any_healthy(now),
            rng=self._env.rng,
        )
        if delay_s is None:
            raise error_of(failure, self._facts(now))
        self._connect_at = now + delay_s
        self._unsent.clear()
        for sample_id in self._pending:
            self._queue(sample_id, now)

    def _queue(self, sample_id: str, start: float) -> None:
        self._num_queued += 1
        heapq.heappush(self._unsent, (start, self._num_queued, sample_id))

    def _message(self, samples: list[pb.Sample]) -> pb.ScoreStreamRequest:
        return pb.ScoreStreamRequest(
            scorer=self._scorer,
            samples=samples,
            priority=self._env.priority,
            client_id=self._env.settings.client_id,
        )

    def _room(self) -> int:
        return self._env.settings.max_message_bytes - self._message([]).ByteSize()

    def _facts(self, now: float) -> CallFacts:
        return CallFacts(
            what=f"ScoreStream with {self._scorer!r}",
            address=self._address,
            num_attempts=self._num_breaks + int(self.connected),
            elapsed_s=now - self._env.started_at,
            timeout_s=self._env.timeout_s,
        )


def check_window(window: int) -> int:
    """`window` if it is in range.

    Raises:
        ValueError: If it is not.
    """
    if window < 1:
        raise ValueError(f"window is {window}; it must be at least 1")
    return window
