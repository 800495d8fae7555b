"""Identical samples: computed once while in flight, and not at all if they are in the cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeBackend, item

from rewardsvc.engine.batcher import Batcher
from rewardsvc.engine.host import EngineHost, EngineSettings
from rewardsvc.engine.observe import NullObserver, Reuse
from rewardsvc.engine.reuse import (
    ENTRY_OVERHEAD_BYTES,
    MIB,
    AnswerCache,
    CacheSettings,
    digest_of,
)
from rewardsvc.engine.types import Encoded, LogprobQuery
from rewardsvc.errors import ItemError, ItemErrorCode, QueueFullError
from rewardsvc.scoring.context import CallContext, call_context

BUDGET = 64
Put = Callable[..., Awaitable[Batcher]]


class Recorder(NullObserver):
    """Counts what did not have to be computed."""

    def __init__(self) -> None:
        self.reuses: list[tuple[Reuse, int]] = []

    def reused(self, model: str, reuse: Reuse, num_items: int) -> None:
        self.reuses.append((reuse, num_items))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def put(recorder: Recorder) -> AsyncIterator[Put]:
    """`await put(backend, cache, **settings)` gives the batcher in front of it."""
    hosts = []

    async def put(
        backend: FakeBackend, cache: CacheSettings | None = None, **settings: Any
    ) -> Batcher:
        bounds = {"device": "cpu", "max_batch_tokens": BUDGET, "drain_s": 0.2} | settings
        hosts.append(EngineHost(EngineSettings(**bounds), recorder))
        return await hosts[-1].add_model("fake", lambda device: backend, cache=cache)

    yield put
    for host in hosts:
        await host.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def identity(one: Encoded) -> Encoded:
    return one


def start(batcher: Batcher, items: Sequence[Encoded], **context: Any) -> asyncio.Task[Any]:
    with call_context(CallContext(**context)):
        return asyncio.create_task(batcher.submit(items, identity))


async def hold(batcher: Batcher, backend: FakeBackend) -> list[asyncio.Task[Any]]:
    """Blocks the device, and fills the slot behind it; returns the calls that do."""
    backend.gate.clear()
    backend.running.clear()
    first = start(batcher, [item(1, first=-1)])
    await until(backend.running.is_set)
    second = start(batcher, [item(1, first=-2)])
    await until(lambda: batcher.num_batches == 2)
    return [first, second]


def num_runs(backend: FakeBackend, first: int) -> int:
    return sum(batch.count(first) for batch in backend.batches)


async def test_identical_samples_of_two_calls_and_of_one_are_computed_once(
    put: Put, recorder: Recorder
) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    held = await hold(batcher, backend)
    calls = [start(batcher, [item(4, first=9), item(4, first=i)] * 2) for i in (3, 5)]
    await until(lambda: batcher.load == 10)  # every one of them counts
    await until(lambda: sum(n for _, n in recorder.reuses) == 5)
    backend.gate.set()
    for i, call in zip((3, 5), calls, strict=True):
        assert [a.item() for a in await call] == [12, 3 + i] * 2
    await asyncio.gather(*held)
    assert [num_runs(backend, first) for first in (9, 3, 5)] == [1, 1, 1]
    assert batcher.load == 0


@pytest.mark.parametrize("place", ["queued", "standing ready", "computing"])
async def test_cancelling_the_first_does_not_cancel_the_second(place: str, put: Put) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    held = [] if place == "computing" else await hold(batcher, backend)
    if place == "standing ready":
        first, twin = held[1], item(1, first=-2)
    else:
        backend.gate.clear()
        twin = item(4, first=9)
        first = start(batcher, [twin])
        if place == "computing":
            await until(backend.running.is_set)
        else:
            await until(lambda: batcher.num_waiting == 1)
    second = start(batcher, [twin])
    await until(lambda: batcher.load == len(held) + (2 if place != "standing ready" else 1))
    await asyncio.sleep(0.02)  # it has entered the queue, or joined what is out of it
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    backend.gate.set()
    assert (await asyncio.wait_for(second, 20))[0].item() == twin.token_ids.sum()
    assert num_runs(backend, int(twin.token_ids[0])) == 1
    await asyncio.gather(*held, return_exceptions=True)
    assert batcher.load == 0


async def test_second_that_came_when_the_device_had_skipped_the_first_is_computed(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    forward, skipped = batcher._forward, []

    def skip_once(batch: list[Any]) -> Any:
        if skipped:
            return forward(batch)
        skipped.extend(batch)
        return [None] * len(batch), None

    monkeypatch.setattr(batcher, "_forward", skip_once)
    answers = await asyncio.wait_for(batcher.submit([item(4, first=9)], identity), 20)
    assert skipped
    assert answers[0].item() == 12


async def test_urgent_twin_is_not_held_back_by_the_patient_one(put: Put) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    held = await hold(batcher, backend)
    patient = start(batcher, [item(BUDGET, first=i) for i in (1, 2, 9)])
    await until(lambda: batcher.num_waiting == 3)
    urgent = start(batcher, [item(BUDGET, first=9)], priority=5)
    await until(lambda: batcher.num_waiting == 4)
    backend.gate.set()
    await asyncio.gather(*held, patient, urgent)
    assert backend.batches[2:] == [[9], [1], [2]]


async def test_all_twins_of_a_poisoned_sample_are_told(put: Put) -> None:
    def fault(batch: Sequence[Encoded]) -> None:
        if any(one.token_ids[0] == 9 for one in batch):
            raise RuntimeError("poisoned")

    batcher = await put(FakeBackend(fault), CacheSettings())
    for _ in range(2):  # a failure is not cached either: the device may have been out of memory
        answers = await batcher.submit([item(4, first=9)] * 3 + [item(4, first=1)], identity)
        assert [isinstance(a, ItemError) for a in answers] == [True] * 3 + [False]
        assert {a.code for a in answers[:3]} == {ItemErrorCode.MODEL_FAILURE}


async def test_cached_answers_come_without_the_device(put: Put, recorder: Recorder) -> None:
    backend = FakeBackend()
    batcher = await put(backend, CacheSettings())
    first = await batcher.submit([item(4, first=i) for i in range(5)], identity)
    backend.gate.clear()
    again = await asyncio.wait_for(
        batcher.submit([item(4, first=i) for i in range(5)], identity), 20
    )
    assert [a.item() for a in first] == [a.item() for a in again] == [3, 4, 5, 6, 7]
    assert recorder.reuses == [(Reuse.CACHE, 5)]
    backend.gate.set()
    assert sum(map(len, backend.batches)) == 5


async def test_admission_counts_samples_that_are_cached(put: Put) -> None:
    backend = FakeBackend()
    batcher = await put(backend, CacheSettings(), max_queue_items=4)
    await batcher.submit([item(4)], identity)
    held = await hold(batcher, backend)
    calls = [start(batcher, [item(4)] * 2) for _ in range(2)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, QueueFullError]
    backend.gate.set()
    await asyncio.gather(*held)


async def test_without_a_cache_nothing_is_kept(put: Put) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    for _ in range(3):
        await batcher.submit([item(4, first=9)], identity)
    assert num_runs(backend, 9) == 3
    assert batcher._queue._works == {}


@pytest.mark.parametrize(
    "other",
    [
        Encoded(token_ids=np.int32([1, 2, 4]), positions=np.int32([2])),
        Encoded(token_ids=np.int32([1, 2, 3]), positions=np.int32([1])),
        Encoded(token_ids=np.int32([1, 2]), positions=np.int32([3, 2])),
        Encoded(
            token_ids=np.int32([1, 2, 3]), positions=np.int32([2]), token_type_ids=np.int32([0] * 3)
        ),
        Encoded(token_ids=np.int32([1, 2, 3]), positions=np.int32([2]), query=LogprobQuery()),
        Encoded(
            token_ids=np.int32([1, 2, 3]),
            positions=np.int32([2]),
            query=LogprobQuery(temperature=0.5),
        ),
    ],
)
def test_items_that_differ_in_anything_have_different_digests(other: Encoded) -> None:
    one = Encoded(token_ids=np.int32([1, 2, 3]), positions=np.int32([2]))
    same = Encoded(token_ids=np.int32([1, 2, 3]), positions=np.int32([2]))
    assert digest_of(one) == digest_of(same)
    assert digest_of(one) != digest_of(other)


def key(number: int) -> bytes:
    return digest_of(item(2, first=number))


def numbers(value: float, count: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.full((count, 1), value, np.float32)


def test_cache_forgets_what_was_not_asked_for_longest() -> None:
    cache = AnswerCache(CacheSettings(max_entries=2))
    cache.put(key(1), numbers(1))
    cache.put(key(2), numbers(2))
    assert cache.get(key(1)) == 1
    cache.put(key(3), numbers(3))
    assert cache.get(key(2)) is None
    assert cache.get(key(1)) == 1
    assert cache.get(key(3)) == 3


def test_cache_holds_its_memory_and_keeps_no_view_of_a_batch() -> None:
    cache = AnswerCache(CacheSettings(max_mib=0.1))
    batch = numbers(1, 1_000_000)
    for i in range(1000):
        cache.put(key(i), batch[i : i + 100])
    assert 100 < len(cache) < 0.1 * MIB / ENTRY_OVERHEAD_BYTES
    assert cache.num_bytes <= 0.1 * MIB
    kept = cache.get(key(999))
    assert kept is not None
    assert kept.base is None
    assert not kept.flags.writeable
    cache.put(key(1000), batch)
    assert cache.get(key(1000)) is None
    assert cache.num_bytes == 0 == len(cache)


def test_cache_forgets_what_is_too_old() -> None:
    now = 0.0
    cache = AnswerCache(CacheSettings(ttl_s=10), clock=lambda: now)
    cache.put(key(1), numbers(1))
    now = 9.0
    assert cache.get(key(1)) == 1
    now = 10.5
    assert cache.get(key(1)) is None
    assert cache.num_bytes == 0


async def test_next_batch_starts_without_the_event_loop(put: Put) -> None:
    """The device is not idle between batches: the next one stands behind the one that runs."""
    backend = FakeBackend()
    batcher = await put(backend)
    held = await hold(batcher, backend)
    assert backend.batches == [[-1]]
    backend.gate.set()
    ends_at = time.monotonic() + 20
    while len(backend.batches) < 2 and time.monotonic() < ends_at:
        time.sleep(0.001)  # the loop stands still
    assert backend.batches == [[-1], [-2]]
    await asyncio.gather(*held)


async def test_next_batch_is_tokenised_while_the_device_computes(put: Put) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    encoded = []

    def encode(one: Encoded) -> Encoded:
        encoded.append(one)
        return one

    held = await hold(batcher, backend)
    call = asyncio.create_task(batcher.submit([item(3, first=i) for i in range(300)], encode))
    await until(lambda: len(encoded) == 300)
    assert backend.batches == [[-1]], "the device computed the first batch all the time"
    backend.gate.set()
    await asyncio.gather(call, *held)
