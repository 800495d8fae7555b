"""The admission queue and the padded shape, against what their descriptions say."""

from __future__ import annotations

import itertools

import pytest
from fake_backend import item
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rewardsvc.engine.queue import Entry, Ticket, WorkQueue
from rewardsvc.engine.shape import PaddedShape
from rewardsvc.errors import QueueFullError
from rewardsvc.scoring.context import CallContext

BUDGET, MAX_TOKENS, MAX_ITEMS, PATIENCE = 40, 120, 20, 10.0
lengths = st.integers(1, 50)
INFINITY = float("inf")


def new_queue(**limits: int) -> WorkQueue:
    bounds = {"max_tokens": MAX_TOKENS, "max_items": MAX_ITEMS, "max_batch_tokens": BUDGET}
    return WorkQueue(PaddedShape(), **bounds | limits, patience_s=PATIENCE)


@given(st.lists(lengths, min_size=1, max_size=60), st.integers(1, 200))
def test_padded_shape_holds_budget_and_keeps_the_most_urgent(found: list[int], budget: int) -> None:
    window = [item(length) for length in found]
    chosen = PaddedShape().select(window, budget)
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen)
    cost = len(chosen) * max(found[i] for i in chosen)
    assert cost <= budget or chosen == [0]
    assert sum(found[i] for i in chosen) >= 0.75 * cost


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 60))
def test_padded_shape_takes_as_many_tokens_as_any_run_of_similar_rows(
    found: list[int], budget: int
) -> None:
    chosen = PaddedShape().select([item(length) for length in found], budget)
    order = sorted(range(len(found)), key=lambda i: found[i])
    best = found[0]
    for first, last in itertools.combinations_with_replacement(range(len(order)), 2):
        rows = order[first : last + 1]
        cost, real = len(rows) * found[order[last]], sum(found[i] for i in rows)
        if 0 in rows and cost <= budget and real >= 0.75 * cost:
            best = max(best, real)
    assert sum(found[i] for i in chosen) == best


@given(st.lists(st.tuples(st.integers(-2, 2), st.floats(1, 30), lengths), min_size=1, max_size=40))
def test_head_of_every_batch_is_the_most_urgent_left(
    calls: list[tuple[int, float, int]],
) -> None:
    queue = new_queue(max_tokens=10**6, max_items=10**6)
    left = {}
    for index, (priority, deadline, length) in enumerate(calls):
        ticket = queue.admit(1, CallContext(priority=priority, deadline=deadline))
        queue.push(queue.entry(ticket, index, item(length), now=0.0))
        left[index] = (-priority, min(deadline, PATIENCE), index)
    while queue.num_items:
        batch = [entry.index for entry in queue.take(now=0.0).batch]
        assert min(left, key=left.__getitem__) in batch
        assert len({calls[i][0] for i in batch}) == 1, "a batch mixes no priorities"
        for index in batch:
            del left[index]
    assert not left


@given(st.integers(1, 200))
def test_call_counts_whole_up_to_half_of_the_bound(num_items: int) -> None:
    queue = new_queue()
    queue.admit(num_items, CallContext())
    assert queue.load == min(num_items, MAX_ITEMS // 2)


def test_refused_call_is_told_when_to_come_back() -> None:
    queue = new_queue()
    ticket = queue.admit(10, CallContext())
    queue.admit(10, CallContext())
    queue.push(queue.entry(ticket, 0, item(30), now=0.0))
    queue.observe_speed(num_tokens=100, seconds=1.0)
    with pytest.raises(QueueFullError, match="20 samples of at most 20") as caught:
        queue.admit(5, CallContext())
    # A quarter of 30 tokens at 100 a second.
    assert caught.value.retry_delay_ms == 75


def test_old_work_without_a_deadline_is_not_overtaken_for_ever() -> None:
    queue = new_queue(max_tokens=10**6, max_items=10**6)
    patient = queue.admit(1, CallContext())
    queue.push(queue.entry(patient, 0, item(BUDGET), now=0.0))
    for second in range(1, 20):
        rival = queue.admit(1, CallContext(deadline=second + 3.0))
        queue.push(queue.entry(rival, 0, item(BUDGET), now=float(second)))
        if queue.take(now=float(second)).batch[0].ticket is patient:
            assert second <= PATIENCE
            return
    pytest.fail("never served")


class QueueMachine(RuleBasedStateMachine):
    """Calls come, go, expire and are served in any order; every entry leaves exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = new_queue()
        self.now = 0.0
        self.open: list[Ticket] = []
        self.inside: dict[int, Entry] = {}
        self.unpushed: dict[Ticket, int] = {}

    @rule(
        num_items=st.integers(1, 30),
        priority=st.integers(-1, 1),
        patience=st.one_of(st.just(INFINITY), st.floats(0.5, 5)),
    )
    def admit(self, num_items: int, priority: int, patience: float) -> None:
        call = CallContext(priority=priority, deadline=self.now + patience)
        weight = min(num_items, MAX_ITEMS // 2)
        fits = self.queue.load + weight <= MAX_ITEMS
        if not fits:
            with pytest.raises(QueueFullError):
                self.queue.admit(num_items, call)
            return
        ticket = self.queue.admit(num_items, call)
        self.open.append(ticket)
        self.unpushed[ticket] = num_items

    @precondition(lambda self: self.open)
    @rule(data=st.data(), length=lengths)
    def push(self, data: st.DataObject, length: int) -> None:
        ticket = data.draw(st.sampled_from(self.open))
        if self.unpushed[ticket] and self.queue.has_room(length):
            self.unpushed[ticket] -= 1
            entry = self.queue.entry(ticket, 0, item(length), self.now)
            self.queue.push(entry)
            self.inside[id(entry)] = entry

    @rule()
    def take(self) -> None:
        taken = self.queue.take(self.now)
        for entry in taken.batch:
            assert entry.ticket.wants_answers(self.now)
        for entry in taken.dropped:
            assert not entry.ticket.wants_answers(self.now)
        for entry in (*taken.batch, *taken.dropped):
            assert self.inside.pop(id(entry)) is entry, "left twice"
            self.queue.answered(entry.ticket)
        cost = len(taken.batch) * max((len(e.item) for e in taken.batch), default=0)
        assert cost <= BUDGET or len(taken.batch) == 1
        wanted = [e for e in self.inside.values() if e.ticket.wants_answers(self.now)]
        assert taken.batch or not wanted, "wanted work was left behind"

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.open))
        self.open.remove(ticket)
        mine = [key for key, entry in self.inside.items() if entry.ticket is ticket]
        assert self.queue.discard(ticket) == len(mine)
        assert self.queue.discard(ticket) == 0
        for key in mine:
            del self.inside[key]

    @rule(seconds=st.floats(0.1, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def bounds_and_counts_hold(self) -> None:
        costs = [len(entry.item) for entry in self.inside.values()]
        assert self.queue.num_items == len(costs)
        assert self.queue.num_tokens == sum(costs)
        assert self.queue.num_tokens <= MAX_TOKENS or len(costs) == 1
        weights = [min(t.num_unanswered, MAX_ITEMS // 2) for t in self.open]
        assert self.queue.load == sum(weights) <= MAX_ITEMS


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
