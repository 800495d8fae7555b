"""The admission queue of one model: pure, synchronous, owned by one task.

Theory of operation. A call is admitted or refused as a whole, once, when it comes (`admit`), and
gets a `Ticket`. Its items then enter the queue one by one (`push`), as far as there is room for
their tokens (`has_room`); they leave it in batches (`take`), or because their call is gone
(`discard`). Every item that was pushed leaves exactly once.

Two bounds hold:

* Items: the unanswered items of all admitted calls, wherever they are, stay within `max_items`. A
  call counts with all its items, but with at most half of the bound: otherwise a call larger than
  the bound could never be served.
* Tokens: what waits here stays within `max_tokens`, unless it is a single item larger than that.

Order: priority first (higher is earlier), then what is due first, then arrival. Due is the
deadline, or `patience_s` after the item came if that is earlier, so nobody of the same priority is
overtaken for ever. The first in this order is always in the next batch; the others in that batch
may come from further behind, from a window of a few batches of the same priority, where the
backend's `BatchShape` picks what fits well together.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, field

from rewardsvc.engine.types import BatchShape, Encoded
from rewardsvc.errors import QueueFullError
from rewardsvc.scoring.context import CallContext

WINDOW_BATCHES = 4
"""A batch is picked among the most urgent items of this many batches' worth of tokens."""

WINDOW_ITEMS = 4096
"""Most items in that window: bounds the time that picking takes."""

MIN_RETRY_MS, MAX_RETRY_MS, UNKNOWN_RETRY_MS = 50, 60_000, 1_000


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """One admitted call.

    Attributes:
        call: Its context.
        num_unanswered: Items that have no answer yet.
        is_open: False once nobody waits for the answers; read by the device thread as well.
    """

    call: CallContext
    num_unanswered: int
    is_open: bool = True

    def wants_answers(self, now: float) -> bool:
        """Whether computing for this call is worth it at time `now` (monotonic seconds)."""
        return self.is_open and self.call.deadline > now


@dataclass(slots=True, eq=False, kw_only=True)
class Entry:
    """One item in the queue.

    Attributes:
        ticket: The call it belongs to.
        index: Its place in the call.
        item: What to compute.
        cost: Its tokens, as the batch shape counts them.
        queued_at: When it was pushed, in monotonic seconds.
        key: Sorts the queue.
    """

    ticket: Ticket
    index: int
    item: Encoded
    cost: int
    queued_at: float
    key: tuple[int, float, int]


@dataclass(frozen=True, slots=True)
class Taken:
    """What left the queue in one `take`.

    Attributes:
        batch: To be computed; within the budget, or a single item.
        dropped: Not wanted any more; never computed.
    """

    batch: list[Entry] = field(default_factory=list)
    dropped: list[Entry] = field(default_factory=list)


class WorkQueue:
    """See the module's text. All times are monotonic seconds."""

    def __init__(
        self,
        shape: BatchShape,
        *,
        max_batch_tokens: int,
        max_tokens: int,
        max_items: int,
        patience_s: float,
    ) -> None:
        self._shape = shape
        self._max_batch_tokens = max_batch_tokens
        self._max_tokens = max_tokens
        self._max_items = max_items
        self._patience_s = patience_s
        self._entries: list[Entry] = []
        self._num_tokens = 0
        self._num_pushed = 0
        self._load = 0
        self._tokens_per_s = 0.0

    @property
    def num_items(self) -> int:
        """Items that wait."""
        return len(self._entries)

    @property
    def num_tokens(self) -> int:
        """Tokens that wait."""
        return self._num_tokens

    @property
    def load(self) -> int:
        """What the admitted calls count against `max_items`."""
        return self._load

    def _weight(self, num_unanswered: int) -> int:
        return min(num_unanswered, max(1, self._max_items // 2))

    def admit(self, num_items: int, call: CallContext, *, tokens_full: bool = False) -> Ticket:
        """Lets a call in.

        Args:
            num_items: Its items, at least 1.
            call: Its context.
            tokens_full: Whether an admitted call waits for room for its tokens already.

        Raises:
            QueueFullError: If one of the two bounds is reached.
        """
        weight = self._weight(num_items)
        excess = self._load + weight - self._max_items
        if excess > 0:
            raise QueueFullError(
                f"queue full: {self._load} samples of at most {self._max_items} are waiting, and "
                f"the call brings {num_items}; retry later or raise engine.max_queue_items",
                retry_delay_ms=self._retry_delay_ms(excess / self._load),
            )
        if tokens_full:
            raise QueueFullError(
                f"queue full: {self._num_tokens} tokens of at most {self._max_tokens} are waiting; "
                "retry later or raise engine.max_queue_tokens",
                retry_delay_ms=self._retry_delay_ms(0.5),
            )
        self._load += weight
        return Ticket(call=call, num_unanswered=num_items)

    def _retry_delay_ms(self, share: float) -> int:
        """When `share` of what waits will be done, at the speed measured so far."""
        if not self._tokens_per_s:
            return UNKNOWN_RETRY_MS
        delay_ms = math.ceil(1000 * share * self._num_tokens / self._tokens_per_s)
        return min(max(delay_ms, MIN_RETRY_MS), MAX_RETRY_MS)

    def observe_speed(self, num_tokens: int, seconds: float) -> None:
        """Tells what a batch took, for the estimate of the retry delay."""
        speed = num_tokens / max(seconds, 1e-6)
        self._tokens_per_s = 0.8 * self._tokens_per_s + 0.2 * speed if self._tokens_per_s else speed

    def has_room(self, cost: int) -> bool:
        """Whether an item of this cost may be pushed now."""
        return not self._entries or self._num_tokens + cost <= self._max_tokens

    def entry(self, ticket: Ticket, index: int, item: Encoded, now: float) -> Entry:
        """Makes the entry that `push` takes. Its place in the order counts from here."""
        self._num_pushed += 1
        due = min(ticket.call.deadline, now + self._patience_s)
        return Entry(
            ticket=ticket,
            index=index,
            item=item,
            cost=self._shape.cost(item),
            queued_at=now,
            key=(-ticket.call.priority, due, self._num_pushed),
        )

    def push(self, entry: Entry) -> None:
        """Puts an entry in; `has_room` must hold."""
        assert self.has_room(entry.cost), "pushed without room"
        insort(self._entries, entry, key=_key)
        self._num_tokens += entry.cost

    def take(self, now: float) -> Taken:
        """Takes the next batch out, and what is not wanted any more on the way to it."""
        window: list[Entry] = []
        taken = Taken()
        num_seen = tokens = 0
        for entry in self._entries:
            if len(window) >= WINDOW_ITEMS or tokens >= WINDOW_BATCHES * self._max_batch_tokens:
                break
            if window and entry.ticket.call.priority != window[0].ticket.call.priority:
                break
            num_seen += 1
            if entry.ticket.wants_answers(now):
                window.append(entry)
                tokens += entry.cost
            else:
                taken.dropped.append(entry)
        if window:
            chosen = self._shape.select([e.item for e in window], self._max_batch_tokens)
            assert 0 in chosen, "the most urgent item must be in the batch"
            taken.batch.extend(window[i] for i in chosen)
        gone = {id(e) for e in taken.batch} | {id(e) for e in taken.dropped}
        self._entries[:num_seen] = [e for e in self._entries[:num_seen] if id(e) not in gone]
        self._num_tokens -= sum(e.cost for e in taken.batch) + sum(e.cost for e in taken.dropped)
        return taken

    def answered(self, ticket: Ticket) -> None:
        """Counts one answer to an item of `ticket`, computed or not."""
        if ticket.is_open:
            before = self._weight(ticket.num_unanswered)
            ticket.num_unanswered -= 1
            self._load -= before - self._weight(ticket.num_unanswered)

    def discard(self, ticket: Ticket) -> int:
        """Closes a ticket and takes out what it still has in the queue; returns how many items."""
        if not ticket.is_open:
            return 0
        ticket.is_open = False
        self._load -= self._weight(ticket.num_unanswered)
        if not ticket.num_unanswered:
            return 0
        kept = [entry for entry in self._entries if entry.ticket is not ticket]
        num_removed = len(self._entries) - len(kept)
        self._num_tokens -= sum(e.cost for e in self._entries if e.ticket is ticket)
        self._entries = kept
        return num_removed


def _key(entry: Entry) -> tuple[int, float, int]:
    return entry.key
