"""What the queue holds: calls, their items, and the computations that items wait for."""

from __future__ import annotations

from dataclasses import dataclass, field

from rewardsvc.engine.types import Encoded
from rewardsvc.scoring.context import CallContext


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """One admitted call.

    Attributes:
        call: Its context.
        num_unanswered: Items that have no answer yet.
        is_open: False once nobody waits for the answers; read by the device thread as well.
        queued: Its entries in the queue.
    """

    call: CallContext
    num_unanswered: int
    is_open: bool = True
    queued: set[Entry] = field(default_factory=set)

    def wants_answers(self, now: float) -> bool:
        """Whether computing for this call is worth it at time `now` (monotonic seconds)."""
        return self.is_open and self.call.deadline > now


@dataclass(slots=True, eq=False, kw_only=True)
class Entry:
    """One item of a call.

    Attributes:
        ticket: The call it belongs to.
        index: Its place in the call.
        work: The computation it waits for.
        cost: Its tokens, as the batch shape counts them.
        queued_at: When it was made, in monotonic seconds.
        due: Sorts a client's entries; no two are equal.
    """

    ticket: Ticket
    index: int
    work: Work
    cost: int
    queued_at: float
    due: tuple[float, int]

    @property
    def client(self) -> str:
        """Whose it is."""
        return self.ticket.call.client_id

    @property
    def priority(self) -> int:
        """Higher is served first."""
        return self.ticket.call.priority


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """One computation, and every entry that waits for it: identical items are computed once.

    Attributes:
        key: Equal for items with equal answers; None for one that is not to be shared.
        item: What to compute.
        claims: Entries without an answer; those of calls that are gone may still be among them.
        is_running: Whether it has left the queue. Later claims are not queued, they just wait.
    """

    key: bytes | None
    item: Encoded
    claims: list[Entry] = field(default_factory=list)
    is_running: bool = False

    def is_wanted(self, now: float) -> bool:
        """Whether anybody waits for it at time `now`; the device thread asks as well."""
        return any(entry.ticket.wants_answers(now) for entry in tuple(self.claims))
