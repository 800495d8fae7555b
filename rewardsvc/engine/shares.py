"""The order in which the entries of one priority are served: fair between clients.

Theory of operation. Each client has a clock that advances by the tokens computed for it, divided by
its weight, and the client whose clock is furthest behind is served next (start-time fair queueing).
A client that had nothing to do does not save up: when it comes back, its clock is set to that of
those being served, unless it is ahead still. So while two clients want more than the device can
give, each gets tokens in proportion to its weight; and a client with little work is served at once,
however much the others have waiting.

Within a client, what is due first is served first.

Clients take turns of `TURN_BATCHES` batches in a window, not of one entry: the completions of one
prompt then stand together, where the backend finds their shared prefix. A turn binds nothing beyond
the window; the clocks are looked at again for each batch.

Source: Goyal, Vin, Cheng, "Start-time Fair Queueing: A Scheduling Algorithm for Integrated Services
    Packet Switching Networks", SIGCOMM 1996. There the clock of the system is that of the packet
    being sent. A batch serves several clients at once and not quite in order, so here it is that of
    the client where one batch's worth of tokens ends in the fair order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from rewardsvc.engine.work import Entry

TURN_BATCHES = 2
"""Batches' worth of tokens that one client may have in a row in the window of a batch."""

KEPT_IDLE = 64
"""Clients without entries that are remembered; of more, those that are not ahead are forgotten."""

FEW = 8
"""Up to so many entries are taken out of a list one by one; more by going through it once."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Share:
    """One client's entries, sorted by `due`; `clock` is in tokens per weight.

    `is_new` until something of it was served since it last had nothing to do: of equal clocks, the
    newcomer's is first.
    """

    weight: float
    clock: float
    is_new: bool = True
    entries: list[Entry] = field(default_factory=list)


class FairOrder:
    """The entries of one priority; see the module's text.

    Args:
        batch_tokens: Tokens of a batch.
    """

    def __init__(self, batch_tokens: int) -> None:
        self._batch_tokens = batch_tokens
        self._shares: dict[str, _Share] = {}
        self._clock = 0.0
        self._num_entries = 0

    def __len__(self) -> int:
        return self._num_entries

    def push(self, entry: Entry, weight: float) -> None:
        """Puts an entry in, for a client of this weight."""
        share = self._shares.get(entry.client)
        if share is None:
            share = self._shares[entry.client] = _Share(weight=weight, clock=self._clock)
        if not share.entries:
            share.clock = max(share.clock, self._clock)
            share.is_new = True
        insort(share.entries, entry, key=_due)
        self._num_entries += 1

    def remove(self, entries: Iterable[Entry]) -> None:
        """Takes entries out; each must be inside."""
        by_client: dict[str, list[Entry]] = {}
        for entry in entries:
            by_client.setdefault(entry.client, []).append(entry)
        for client, gone in by_client.items():
            share = self._shares[client]
            if len(gone) <= FEW:
                for entry in gone:
                    at = bisect_left(share.entries, entry.due, key=_due)
                    assert share.entries[at] is entry, "the entry is not in the queue"
                    del share.entries[at]
            else:
                dues = {entry.due for entry in gone}
                share.entries = [e for e in share.entries if e.due not in dues]
            self._num_entries -= len(gone)
        self._forget_idle()

    def charge(self, entries: Iterable[Entry]) -> None:
        """Advances the clocks of those whose entries are computed; they are inside still."""
        tokens = 0
        for entry in self.in_order():
            self._clock = max(self._clock, self._shares[entry.client].clock)
            tokens += entry.cost
            if tokens >= self._batch_tokens:
                break
        for entry in entries:
            share = self._shares[entry.client]
            share.clock += entry.cost / share.weight
            share.is_new = False

    def in_order(self) -> Iterator[Entry]:
        """All entries in the order of service; nothing may be changed meanwhile."""
        turn_tokens = TURN_BATCHES * self._batch_tokens
        heap = [
            (share.clock, not share.is_new, share.entries[0].due, 0, share)
            for share in self._shares.values()
            if share.entries
        ]
        heapify(heap)
        while heap:
            clock, _, _, start, share = heappop(heap)
            used, at = 0, start
            while at < len(share.entries) and used < turn_tokens:
                yield share.entries[at]
                used += share.entries[at].cost
                at += 1
            if at < len(share.entries):
                then = clock + used / share.weight
                heappush(heap, (then, True, share.entries[at].due, at, share))

    def _forget_idle(self) -> None:
        if not self._num_entries:
            # Whoever comes next starts level: there is nobody left to be fair to.
            self._shares.clear()
            self._clock = 0.0
        elif len(self._shares) > KEPT_IDLE:
            idle = [name for name, share in self._shares.items() if not share.entries]
            if len(idle) > KEPT_IDLE:
                for name in idle:
                    if self._shares[name].clock <= self._clock:
                        del self._shares[name]


def _due(entry: Entry) -> tuple[float, int]:
    return entry.due
