"""Clients share a model: in the order of service, and at the door."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fake_backend import FakeBackend, item
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.engine.batcher import Batcher
from rewardsvc.engine.host import EngineHost, EngineSettings
from rewardsvc.engine.queue import HARD_LIMIT, WINDOW_BATCHES, WorkQueue
from rewardsvc.engine.shape import PaddedShape
from rewardsvc.engine.shares import TURN_BATCHES
from rewardsvc.engine.types import Encoded
from rewardsvc.errors import QueueFullError
from rewardsvc.scoring.context import CallContext, call_context

BUDGET = 64
LONGEST = 16

Put = Callable[..., Awaitable[Batcher]]


def new_queue(**limits: Any) -> WorkQueue:
    bounds = {"max_batch_tokens": BUDGET, "max_tokens": 10**6, "max_items": 10**6}
    return WorkQueue(PaddedShape(), **bounds | limits, patience_s=60.0)


def fill(queue: WorkQueue, client: str, lengths: list[int], **call: Any) -> None:
    ticket = queue.admit(len(lengths), CallContext(client_id=client, **call))
    for index, length in enumerate(lengths):
        queue.push(queue.entry(ticket, index, item(length), now=0.0))


def take(queue: WorkQueue) -> Counter[str]:
    """Tokens of each client in the next batch."""
    tokens: Counter[str] = Counter()
    for work in queue.take(now=0.0).batch:
        tokens[work.claims[0].client] += len(work.item)
        queue.finish(work)
    return tokens


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(1, LONGEST), st.integers(1, LONGEST)),
    st.sampled_from([1.0, 2.0, 5.0]),
)
def test_clients_that_want_more_than_there_is_get_tokens_by_weight(
    seed: int, longest: tuple[int, int], weight: float
) -> None:
    rng = random.Random(seed)
    ours, theirs = ([rng.randint(1, top) for _ in range(300)] for top in longest)
    queue = new_queue(client_weights={"us": weight})
    fill(queue, "us", ours)
    fill(queue, "them", theirs)
    served: Counter[str] = Counter()
    while served["us"] < sum(ours) - 2 * BUDGET and served["them"] < sum(theirs) - 2 * BUDGET:
        served += take(queue)
        ahead = abs(served["us"] / weight - served["them"])
        # Whoever is a whole window behind has the window for itself.
        assert ahead <= (WINDOW_BATCHES + 1) * BUDGET + 2 * LONGEST


@settings(max_examples=25)
@given(st.integers(1, 10), st.integers(0, 10))
def test_whoever_comes_to_a_busy_model_is_in_the_next_batch(num_heavy: int, num_more: int) -> None:
    queue = new_queue()
    for number in range(num_heavy):
        fill(queue, f"heavy-{number}", [8] * 200)
    for _ in range(num_heavy + num_more):  # each had its turn
        take(queue)
    fill(queue, "light", [8])
    assert take(queue)["light"] == 8


def test_time_without_work_earns_no_credit() -> None:
    queue = new_queue()
    fill(queue, "steady", [8] * 1000)
    for _ in range(50):
        take(queue)
    fill(queue, "late", [8] * 1000)
    served: Counter[str] = Counter()
    for _ in range(20):
        served += take(queue)
    assert abs(served["steady"] - served["late"]) <= (TURN_BATCHES + 1) * BUDGET


def test_many_short_lived_clients_leave_nothing_behind() -> None:
    queue = new_queue()
    fill(queue, "steady", [8] * 10_000)
    for number in range(1000):
        fill(queue, f"one-call-{number}", [8])
        take(queue)
    (level,) = queue._levels.values()
    assert len(level._shares) < 200


def test_priority_goes_before_shares() -> None:
    queue = new_queue()
    fill(queue, "light", [8])
    fill(queue, "heavy", [8] * 100, priority=1)
    for _ in range(100 * 8 // BUDGET):
        assert "light" not in take(queue)
    while queue.num_items > 1:
        assert "light" not in take(queue)
    assert take(queue) == {"light": 8}


def test_deadlines_order_a_clients_own_work_alone() -> None:
    queue = new_queue()
    fill(queue, "patient", [BUDGET])
    fill(queue, "hasty", [BUDGET], deadline=2.0)
    fill(queue, "hasty", [BUDGET - 1], deadline=1.0)
    order = [dict(take(queue)) for _ in range(3)]
    assert order == [{"hasty": BUDGET - 1}, {"patient": BUDGET}, {"hasty": BUDGET}]


def test_full_queue_still_lets_in_who_holds_less_than_its_part() -> None:
    queue = new_queue(max_items=100)
    for _ in range(2):
        fill(queue, "heavy", [1] * 50)
    with pytest.raises(QueueFullError, match="100 of this client"):
        fill(queue, "heavy", [1])
    fill(queue, "light", [1] * 50)
    with pytest.raises(QueueFullError, match="50 of this client"):
        fill(queue, "light", [1])
    fill(queue, "third", [1] * 33)
    with pytest.raises(QueueFullError, match="33 of this client"):
        fill(queue, "third", [1])


def test_door_has_a_hard_limit_whatever_callers_name_themselves() -> None:
    queue = new_queue(max_items=100)
    num_in = 0
    for number in range(1000):
        try:
            fill(queue, f"alias-{number}", [1] * 5)
        except QueueFullError:
            continue
        num_in += 5
    assert queue.load == num_in <= HARD_LIMIT * 100


@pytest.fixture
async def put() -> AsyncIterator[Put]:
    """`await put(backend, **settings)` gives the batcher in front of it."""
    hosts = []

    async def put(backend: FakeBackend, **settings: Any) -> Batcher:
        bounds = {"device": "cpu", "max_batch_tokens": BUDGET, "drain_s": 0.2} | settings
        hosts.append(EngineHost(EngineSettings(**bounds)))
        return await hosts[-1].add_model("fake", lambda device: backend)

    yield put
    for host in hosts:
        await host.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def identity(one: Encoded) -> Encoded:
    return one


def call(batcher: Batcher, client: str, items: list[Encoded]) -> asyncio.Task[Any]:
    with call_context(CallContext(client_id=client)):
        return asyncio.create_task(batcher.submit(items, identity))


async def test_one_sample_does_not_wait_for_the_thousands_of_another_client(put: Put) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    backend.gate.clear()
    heavy = call(batcher, "heavy", [item(8, first=i) for i in range(2000)])
    await until(lambda: batcher.num_waiting > 1900)
    light = call(batcher, "light", [item(8, first=-7)])
    waiting = batcher.num_waiting
    await until(lambda: batcher.num_waiting > waiting)
    backend.gate.set()
    assert (await light)[0].item() == 0
    # Two batches were out of the queue already when it came.
    assert any(-7 in batch for batch in backend.batches[:3])
    assert [a.item() for a in await heavy] == [i + 7 for i in range(2000)]


async def test_queue_full_of_one_clients_tokens_is_open_to_another(put: Put) -> None:
    backend = FakeBackend()
    batcher = await put(backend, max_queue_tokens=10 * BUDGET)
    backend.gate.clear()
    heavy = call(batcher, "heavy", [item(BUDGET, first=i) for i in range(100)])
    await until(lambda: batcher.num_waiting == 10)
    with pytest.raises(QueueFullError, match=r"engine\.max_queue_tokens"):
        await call(batcher, "heavy", [item(1)])
    light = call(batcher, "light", [item(BUDGET, first=-7)])
    await until(lambda: batcher.load == 101)
    for _ in range(50):
        await asyncio.sleep(0.001)
    backend.gate.set()
    await light
    # Two out already; one more frees the room that it enters by.
    assert [-7] in backend.batches[:5]
    await heavy
