"""The admission queue of one model: pure, synchronous, owned by one task.

Theory of operation. A call is admitted or refused as a whole, once, when it comes (`admit`), and
gets a `Ticket`. Its items then enter the queue one by one (`push`), as far as there is room for
their tokens (`has_room`); they leave it in batches (`take`), or because their call is gone
(`discard`). Every entry that was pushed and queued leaves exactly once.

Bounds:

* Items: the unanswered items of all admitted calls, wherever they are, stay within `max_items`. A
  call counts with all its items, but with at most half of the bound: otherwise a call larger than
  the bound could never be served.
* Tokens: what waits here stays within `max_tokens`, unless it is a single item larger than that.
* Fairness needs an exception: whoever fills the queue first would lock the others out. A client
  that holds nothing, or less than its part of `max_items`, is let in although the bound is reached,
  up to `HARD_LIMIT` times the bound in all.

Order: priority first (higher is earlier); within a priority the clients share the tokens (see
`shares`); within a client what is due first. Due is the deadline, or `patience_s` after the item
came if that is earlier, so that no item is overtaken for ever. The first in this order is always in
the next batch; the others in that batch may come from further behind, from a window of a few
batches of the same priority, where the backend's `BatchShape` picks what fits well together.

Identical items (`Work.key`) are computed once: a later one waits for the earlier one's answer, and
keeps a place of its own in the queue in case that comes up first, or the earlier call goes away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rewardsvc.engine.shares import FairOrder
from rewardsvc.engine.types import BatchShape, Encoded
from rewardsvc.engine.work import Entry, Ticket, Work
from rewardsvc.errors import QueueFullError
from rewardsvc.scoring.context import CallContext

WINDOW_BATCHES = 64
"""A batch is picked among the most urgent items of this many batches' worth of tokens: wide,
because samples that share a prefix may have come far apart."""

WINDOW_ITEMS = 4096
"""Most items in that window: bounds the time that picking takes."""

HARD_LIMIT = 2
"""So many times `max_items` are admitted at most, the excess to clients below their part."""

MIN_RETRY_MS, MAX_RETRY_MS, UNKNOWN_RETRY_MS = 50, 60_000, 1_000


@dataclass(frozen=True, slots=True)
class Taken:
    """What left the queue in one `take`.

    Attributes:
        batch: To be computed; within the budget, or a single item.
        dropped: Not wanted any more.
    """

    batch: list[Work] = field(default_factory=list)
    dropped: list[Entry] = field(default_factory=list)


class WorkQueue:
    """See the module's text. All times are monotonic seconds.

    Args:
        shape: How batches are put together.
        max_batch_tokens: Their budget.
        max_tokens: See the module's text.
        max_items: See the module's text.
        patience_s: An item without an earlier deadline is due so many seconds after it came.
        client_weights: Client → its weight, above 0; 1 for those that are not named.
    """

    def __init__(
        self,
        shape: BatchShape,
        *,
        max_batch_tokens: int,
        max_tokens: int,
        max_items: int,
        patience_s: float,
        client_weights: Mapping[str, float] | None = None,
    ) -> None:
        self._shape = shape
        self._max_batch_tokens = max_batch_tokens
        self._max_tokens = max_tokens
        self._max_items = max_items
        self._patience_s = patience_s
        self._weights = client_weights or {}
        self._levels: dict[int, FairOrder] = {}
        self._works: dict[bytes, Work] = {}
        self._num_items = 0
        self._num_tokens = 0
        self._num_made = 0
        self._load = 0
        self._load_of: dict[str, int] = {}
        self._tokens_of: dict[str, int] = {}
        self._tokens_per_s = 0.0

    @property
    def num_items(self) -> int:
        """Items that wait."""
        return self._num_items

    @property
    def num_tokens(self) -> int:
        """Tokens that wait."""
        return self._num_tokens

    @property
    def load(self) -> int:
        """What the admitted calls count against `max_items`."""
        return self._load

    def load_of(self, client: str) -> int:
        """What this client's calls count of it."""
        return self._load_of.get(client, 0)

    def urgency(self, entry: Entry) -> tuple[int, float, tuple[float, int]]:
        """Sorts entries that wait for room: priority, then who holds least, then what is due."""
        held = self._tokens_of.get(entry.client, 0) / self._weight_of(entry.client)
        return -entry.priority, held, entry.due

    def _weight_of(self, client: str) -> float:
        return self._weights.get(client, 1.0)

    def _part(self, client: str) -> float:
        """This client's part among those that have anything admitted, itself included."""
        others = sum(map(self._weight_of, self._load_of.keys() - {client}))
        own = self._weight_of(client)
        return own / (own + others)

    def _counted(self, num_unanswered: int) -> int:
        return min(num_unanswered, max(1, self._max_items // 2))

    def admit(
        self, num_items: int, call: CallContext, *, waiting: frozenset[str] = frozenset()
    ) -> Ticket:
        """Lets a call in.

        Args:
            num_items: Its items, at least 1.
            call: Its context.
            waiting: Clients with an admitted call that waits for room for its tokens already.

        Raises:
            QueueFullError: If one of the bounds is reached, and the client has its part already.
        """
        client, count = call.client_id, self._counted(num_items)
        part = self._part(client)
        held, total = self.load_of(client), self._load + count
        below = not held or held + count <= part * self._max_items
        below = below and total <= HARD_LIMIT * self._max_items
        if total > self._max_items and not below:
            raise QueueFullError(
                f"queue full: {self._load} samples of at most {self._max_items} are waiting, "
                f"{held} of this client, and the call brings {num_items}; retry later or raise "
                "engine.max_queue_items",
                retry_delay_ms=self._retry_delay_ms((total - self._max_items) / self._load),
            )
        tokens_below = self._tokens_of.get(client, 0) < part * self._max_tokens
        if waiting and (client in waiting or not tokens_below):
            raise QueueFullError(
                f"queue full: {self._num_tokens} tokens of at most {self._max_tokens} are waiting; "
                "retry later or raise engine.max_queue_tokens",
                retry_delay_ms=self._retry_delay_ms(0.5),
            )
        self._count(client, count)
        return Ticket(call=call, num_unanswered=num_items)

    def _count(self, client: str, change: int) -> None:
        self._load += change
        now = self._load_of.get(client, 0) + change
        if now:
            self._load_of[client] = now
        else:
            self._load_of.pop(client, None)

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

    def entry(
        self, ticket: Ticket, index: int, item: Encoded, now: float, key: bytes | None = None
    ) -> Entry:
        """Makes the entry that `push` takes. Its place in the order counts from here.

        Args:
            ticket: The call it belongs to.
            index: Its place in the call.
            item: What to compute.
            now: Monotonic seconds.
            key: Equal for items with equal answers; None if nothing is known of that.
        """
        self._num_made += 1
        due = min(ticket.call.deadline, now + self._patience_s)
        return Entry(
            ticket=ticket,
            index=index,
            work=Work(key=key, item=item),
            cost=self._shape.cost(item),
            queued_at=now,
            due=(due, self._num_made),
        )

    def has_room(self, entry: Entry) -> bool:
        """Whether an entry may be pushed now."""
        if not self._num_items or self._num_tokens + entry.cost <= self._max_tokens:
            return True
        known = self._same(entry)
        return known is not None and known.is_running

    def _same(self, entry: Entry) -> Work | None:
        return self._works.get(entry.work.key) if entry.work.key is not None else None

    def push(self, entry: Entry) -> bool:
        """Puts an entry in; `has_room` must hold. Whether it waits for another one's answer."""
        assert self.has_room(entry), "pushed without room"
        known = self._same(entry)
        if known is not None:
            entry.work = known
        elif entry.work.key is not None:
            self._works[entry.work.key] = entry.work
        entry.work.claims.append(entry)
        if entry.work.is_running:
            return True
        level = self._levels.get(entry.priority)
        if level is None:
            level = self._levels[entry.priority] = FairOrder(self._max_batch_tokens)
        level.push(entry, self._weight_of(entry.client))
        entry.ticket.queued.add(entry)
        self._num_items += 1
        self._num_tokens += entry.cost
        self._tokens_of[entry.client] = self._tokens_of.get(entry.client, 0) + entry.cost
        return known is not None

    def take(self, now: float) -> Taken:
        """Takes the next batch out, and what is not wanted any more on the way to it."""
        taken = Taken()
        for priority in sorted(self._levels, reverse=True):
            level = self._levels[priority]
            window = self._window(level, now, taken.dropped)
            if window:
                chosen = self._shape.select([e.work.item for e in window], self._max_batch_tokens)
                assert 0 in chosen, "the most urgent item must be in the batch"
                entries = [window[i] for i in chosen]
                level.charge(entries)
                for entry in entries:
                    entry.work.is_running = True
                    taken.batch.append(entry.work)
                break
        self._leave(taken.dropped)
        for entry in taken.dropped:
            self._unclaim(entry)
        self._leave(e for work in taken.batch for e in work.claims if e in e.ticket.queued)
        return taken

    def _window(self, level: FairOrder, now: float, dropped: list[Entry]) -> list[Entry]:
        """The most urgent entries, each computation once; what nobody wants goes to `dropped`."""
        window: list[Entry] = []
        works: set[Work] = set()
        tokens = 0
        for entry in level.in_order():
            if len(window) >= WINDOW_ITEMS or tokens >= WINDOW_BATCHES * self._max_batch_tokens:
                break
            if not entry.ticket.wants_answers(now):
                dropped.append(entry)
            elif entry.work not in works:
                works.add(entry.work)
                window.append(entry)
                tokens += entry.cost
        return window

    def _leave(self, entries: Iterable[Entry]) -> None:
        """Takes entries out of the order, whatever becomes of them."""
        by_priority: dict[int, list[Entry]] = {}
        for entry in entries:
            by_priority.setdefault(entry.priority, []).append(entry)
            entry.ticket.queued.discard(entry)
            self._num_items -= 1
            self._num_tokens -= entry.cost
            left = self._tokens_of[entry.client] - entry.cost
            if left:
                self._tokens_of[entry.client] = left
            else:
                del self._tokens_of[entry.client]
        for priority, gone in by_priority.items():
            level = self._levels[priority]
            level.remove(gone)
            if not len(level):
                del self._levels[priority]

    def _unclaim(self, entry: Entry) -> None:
        """Its computation is not for this entry any more."""
        work = entry.work
        work.claims.remove(entry)
        if not work.claims and not work.is_running and work.key is not None:
            del self._works[work.key]

    def finish(self, work: Work) -> list[Entry]:
        """A computation that was taken has ended; returns who waits for it."""
        if work.key is not None:
            del self._works[work.key]
        return work.claims

    def again(self, entry: Entry) -> None:
        """Readies an entry to be pushed once more: its computation ended without an answer."""
        entry.work = Work(key=entry.work.key, item=entry.work.item)

    def answered(self, ticket: Ticket) -> None:
        """Counts one answer to an item of `ticket`, computed or not."""
        if ticket.is_open:
            before = self._counted(ticket.num_unanswered)
            ticket.num_unanswered -= 1
            self._count(ticket.call.client_id, self._counted(ticket.num_unanswered) - before)

    def discard(self, ticket: Ticket) -> int:
        """Closes a ticket and takes out what it still has in the queue; returns how many items."""
        if not ticket.is_open:
            return 0
        ticket.is_open = False
        self._count(ticket.call.client_id, -self._counted(ticket.num_unanswered))
        gone = list(ticket.queued)
        self._leave(gone)
        for entry in gone:
            self._unclaim(entry)
        return len(gone)
