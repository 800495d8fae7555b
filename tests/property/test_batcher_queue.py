"""The admission queue and the padded shape, against what their descriptions say."""

from __future__ import annotations

import itertools

import pytest
from fake_backend import item
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rewardsvc.engine.queue import HARD_LIMIT, WorkQueue
from rewardsvc.engine.shape import PaddedShape
from rewardsvc.engine.work import Entry, Ticket, Work
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
        batch = [work.claims[0].index for work in queue.take(now=0.0).batch]
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
        if queue.take(now=float(second)).batch[0].claims[0].ticket is patient:
            assert second <= PATIENCE
            return
    pytest.fail("never served")


class QueueMachine(RuleBasedStateMachine):
    """Calls of several clients come, go, expire and are served; each entry leaves exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = new_queue()
        self.now = 0.0
        self.open: list[Ticket] = []
        self.inside: dict[int, Entry] = {}
        self.unpushed: dict[Ticket, int] = {}
        self.running: list[Work] = []

    @rule(
        num_items=st.integers(1, 30),
        priority=st.integers(-1, 1),
        client=st.sampled_from(["", "light", "heavy"]),
        patience=st.one_of(st.just(INFINITY), st.floats(0.5, 5)),
    )
    def admit(self, num_items: int, priority: int, client: str, patience: float) -> None:
        call = CallContext(priority=priority, deadline=self.now + patience, client_id=client)
        weight = min(num_items, MAX_ITEMS // 2)
        held = self.queue.load_of(client)
        clients = {t.call.client_id for t in self.open if t.num_unanswered} | {client}
        below = not held or held + weight <= MAX_ITEMS / len(clients)
        total = self.queue.load + weight
        if total > MAX_ITEMS and not (below and total <= HARD_LIMIT * MAX_ITEMS):
            with pytest.raises(QueueFullError):
                self.queue.admit(num_items, call)
            return
        ticket = self.queue.admit(num_items, call)
        self.open.append(ticket)
        self.unpushed[ticket] = num_items

    @precondition(lambda self: self.open)
    @rule(data=st.data(), length=lengths, key=st.sampled_from([None, b"a", b"b"]))
    def push(self, data: st.DataObject, length: int, key: bytes | None) -> None:
        ticket = data.draw(st.sampled_from(self.open))
        length = length if key is None else {b"a": 7, b"b": 35}[key]
        entry = self.queue.entry(ticket, 0, item(length), self.now, key)
        if self.unpushed[ticket] and self.queue.has_room(entry):
            self.unpushed[ticket] -= 1
            twins = [e for e in self.inside.values() if key and e.work.key == key]
            computing = [w for w in self.running if key and w.key == key]
            assert self.queue.push(entry) == bool(twins or computing)
            if computing:
                assert entry.work is computing[0]
            else:
                assert all(twin.work is entry.work for twin in twins)
                self.inside[id(entry)] = entry

    @rule()
    def take(self) -> None:
        taken = self.queue.take(self.now)
        assert len(set(taken.batch)) == len(taken.batch)
        for work in taken.batch:
            assert work.is_wanted(self.now)
            assert not any(w.key is not None and w.key == work.key for w in self.running)
            for entry in work.claims:
                assert self.inside.pop(id(entry)) is entry, "left twice"
        for entry in taken.dropped:
            assert not entry.ticket.wants_answers(self.now)
            assert self.inside.pop(id(entry)) is entry, "left twice"
            self.queue.answered(entry.ticket)
        cost = len(taken.batch) * max((len(w.item) for w in taken.batch), default=0)
        assert cost <= BUDGET or len(taken.batch) == 1
        wanted = [e for e in self.inside.values() if e.ticket.wants_answers(self.now)]
        assert taken.batch or not wanted, "wanted work was left behind"
        self.running += taken.batch

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.running))
        self.running.remove(work)
        for entry in self.queue.finish(work):
            assert id(entry) not in self.inside
            self.queue.answered(entry.ticket)

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
        costs = [len(entry.work.item) for entry in self.inside.values()]
        assert self.queue.num_items == len(costs)
        assert self.queue.num_tokens == sum(costs)
        assert self.queue.num_tokens <= MAX_TOKENS or len(costs) == 1
        weights = [min(t.num_unanswered, MAX_ITEMS // 2) for t in self.open]
        assert self.queue.load == sum(weights) <= HARD_LIMIT * MAX_ITEMS
        for entry in self.inside.values():
            assert entry in entry.work.claims, "nobody would be told of its answer"


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
