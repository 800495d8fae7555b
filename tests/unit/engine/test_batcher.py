"""The batcher around a backend that the test can hold, break and look into."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeBackend, item

from rewardsvc.engine.batcher import Batcher
from rewardsvc.engine.host import EngineHost, EngineSettings
from rewardsvc.engine.observe import BatchReport, NullObserver
from rewardsvc.engine.types import Encoded
from rewardsvc.errors import (
    DeadlinePassedError,
    ItemError,
    ItemErrorCode,
    NotServingError,
    QueueFullError,
)
from rewardsvc.scoring.context import CallContext, call_context

BUDGET = 64


class Recorder(NullObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.reports: list[BatchReport] = []
        self.queues: list[tuple[str, int, int]] = []

    def batch_done(self, report: BatchReport) -> None:
        self.reports.append(report)

    def queue_changed(self, model: str, num_items: int, num_tokens: int) -> None:
        self.queues.append((model, num_items, num_tokens))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def put(recorder: Recorder) -> AsyncIterator[Callable[..., Awaitable[Batcher]]]:
    """`await put(backend, **settings)` gives the batcher in front of it."""
    hosts = []

    async def put(backend: FakeBackend, **settings: Any) -> Batcher:
        bounds = {"device": "cpu", "max_batch_tokens": BUDGET, "drain_s": 0.2} | settings
        hosts.append(EngineHost(EngineSettings(**bounds), recorder))
        return await hosts[-1].add_model("fake", lambda device: backend)

    yield put
    for host in hosts:
        await host.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another thread or task does."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def identity(one: Encoded) -> Encoded:
    return one


async def hold(batcher: Batcher, backend: FakeBackend) -> list[asyncio.Task[Any]]:
    """Blocks the device, and fills the slot behind it; returns the calls that do."""
    backend.gate.clear()
    first = asyncio.create_task(batcher.submit([item(1, first=-1)], identity))
    await until(backend.running.is_set)
    second = asyncio.create_task(batcher.submit([item(1, first=-2)], identity))
    await until(lambda: batcher.num_batches == 2)
    return [first, second]


async def test_ten_thousand_samples_in_one_call_are_all_answered(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend, max_queue_items=1000, max_queue_tokens=500)
    items = [item(1 + i % 5, first=i % 7) for i in range(10_000)]
    answers = await batcher.submit(items, identity)
    assert [a.item() for a in answers] == [i % 5 + i % 7 for i in range(10_000)]
    assert max(backend.costs) <= BUDGET


async def test_calls_of_32_tasks_share_batches_and_get_their_own_answers(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    await hold(batcher, backend)
    tasks = [
        asyncio.create_task(batcher.submit([item(2, first=i), item(2, first=100 + i)], identity))
        for i in range(32)
    ]
    await until(lambda: batcher.load == 66)
    backend.gate.set()
    for i, task in enumerate(tasks):
        assert [a.item() for a in await task] == [i + 1, 101 + i]
    assert len(backend.batches) == 2 + 32 * 2 * 2 // BUDGET
    assert len(backend.threads) == 1


async def test_batch_that_runs_out_of_memory_is_split_until_it_fits(put: Any) -> None:
    def at_most_three_rows(batch: Sequence[Encoded]) -> None:
        if len(batch) > 3:
            raise MemoryError

    backend = FakeBackend(at_most_three_rows)
    batcher = await put(backend)
    answers = await batcher.submit([item(2, first=i) for i in range(16)], identity)
    assert [a.item() for a in answers] == [i + 1 for i in range(16)]
    assert backend.num_recoveries > 0


@pytest.mark.parametrize(("error", "retryable"), [(MemoryError(), True), (ValueError("no"), False)])
async def test_only_the_culprit_of_a_failing_batch_fails(
    error: Exception, retryable: bool, put: Any
) -> None:
    def fails_on_seven(batch: Sequence[Encoded]) -> None:
        if any(one.token_ids[0] == 7 for one in batch):
            raise error

    batcher = await put(FakeBackend(fails_on_seven))
    answers = await batcher.submit([item(2, first=i) for i in range(16)], identity)
    culprit = answers.pop(7)
    assert isinstance(culprit, ItemError)
    assert (culprit.code, culprit.retryable) == (ItemErrorCode.MODEL_FAILURE, retryable)
    assert [a.item() for a in answers] == [i + 1 for i in range(16) if i != 7]


async def test_output_that_is_not_finite_fails_that_item_alone(put: Any) -> None:
    class Overflows(FakeBackend):
        def run(self, batch: Sequence[Encoded]) -> list[Any]:
            outputs = super().run(batch)
            return [np.full((1, 1), np.inf, np.float32) if o == 4 else o for o in outputs]

    batcher = await put(Overflows())
    answers = await batcher.submit([item(2, first=i) for i in range(6)], identity)
    assert isinstance(answers[3], ItemError)
    assert answers[3].code is ItemErrorCode.NON_FINITE
    assert [a.item() for i, a in enumerate(answers) if i != 3] == [1, 2, 3, 5, 6]


async def test_sample_that_cannot_be_encoded_fails_alone(put: Any) -> None:
    def encode(number: int) -> Encoded:
        return item(10 // number)

    batcher = await put(FakeBackend())
    answers = await batcher.submit([5, 0, 10], encode)
    assert isinstance(answers[1], ItemError)
    assert answers[1].code is ItemErrorCode.INTERNAL
    assert "ZeroDivisionError" in answers[1].message
    assert [answers[0].item(), answers[2].item()] == [1, 0]


async def test_deadline_is_kept_while_the_device_is_busy(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    await hold(batcher, backend)
    with (
        call_context(CallContext(deadline=time.monotonic() + 0.05)),
        pytest.raises(DeadlinePassedError, match="1 of 1 samples not computed"),
    ):
        await asyncio.wait_for(batcher.submit([item(3, first=9)], identity), timeout=20)
    assert not backend.gate.is_set(), "the device was busy all the time"
    assert batcher.load == 2
    backend.gate.set()
    await batcher.submit([item(3, first=5)], identity)
    assert [9] not in backend.batches


async def test_work_that_comes_up_after_its_deadline_ends_the_call_and_is_not_computed(
    put: Any,
) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    await hold(batcher, backend)
    with call_context(CallContext(deadline=time.monotonic() + 0.2)):
        late = asyncio.create_task(batcher.submit([item(3, first=9)] * 2, identity))
    await until(lambda: batcher.num_waiting == 2)
    backend.gate.set()
    time.sleep(0.4)  # the loop stands still, so no timer can end the call before its turn comes
    with pytest.raises(DeadlinePassedError):
        await asyncio.wait_for(late, timeout=20)
    await batcher.submit([item(3, first=5)], identity)
    assert all(9 not in batch for batch in backend.batches)


async def test_deadline_in_the_past_is_refused_at_once(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    past = CallContext(deadline=time.monotonic() - 1)
    with call_context(past), pytest.raises(DeadlinePassedError):
        await batcher.submit([item(3)], identity)
    assert backend.batches == []


async def test_cancelled_call_leaves_the_queue_and_is_never_computed(
    put: Any, recorder: Recorder
) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    await hold(batcher, backend)
    gone = asyncio.create_task(batcher.submit([item(3, first=9)] * 5, identity))
    await until(lambda: recorder.queues[-1] == ("fake", 5, 15))
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert recorder.queues[-1] == ("fake", 0, 0)
    assert batcher.load == 2
    backend.gate.set()
    await batcher.submit([item(3, first=5)], identity)
    assert all(9 not in batch for batch in backend.batches)


async def test_call_cancelled_while_its_batch_stands_ready_is_not_computed(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    _, ready = await hold(batcher, backend)
    ready.cancel()
    await asyncio.gather(ready, return_exceptions=True)
    backend.gate.set()
    await batcher.submit([item(3, first=5)], identity)
    assert backend.batches == [[-1], [5]]


async def test_urgent_calls_overtake_and_equals_keep_their_order(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    await hold(batcher, backend)
    tasks = []
    for number, priority in enumerate([0, 0, 5, -5]):
        with call_context(CallContext(priority=priority)):
            tasks.append(
                asyncio.create_task(batcher.submit([item(BUDGET, first=number)], identity))
            )
        await until(lambda number=number: batcher.load == 3 + number)
        await until(lambda number=number: batcher.num_waiting == 1 + number)
    backend.gate.set()
    await asyncio.gather(*tasks)
    assert backend.batches[2:] == [[2], [0], [1], [3]]


async def test_full_queue_refuses_with_a_delay_and_recovers(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend, max_queue_items=10)
    held = await hold(batcher, backend)
    inside = asyncio.create_task(batcher.submit([item(2)] * 5, identity))
    await until(lambda: batcher.load == 7)
    with pytest.raises(QueueFullError, match=r"engine\.max_queue_items") as refused:
        await batcher.submit([item(2)] * 4, identity)
    assert refused.value.retry_delay_ms > 0
    backend.gate.set()
    assert len(await inside) == 5
    await asyncio.gather(*held)
    assert len(await batcher.submit([item(2)] * 4, identity)) == 4


async def test_queue_full_of_tokens_refuses_and_keeps_its_bound(
    put: Any, recorder: Recorder
) -> None:
    backend = FakeBackend()
    batcher = await put(backend, max_queue_tokens=100)
    await hold(batcher, backend)
    big = asyncio.create_task(batcher.submit([item(30)] * 5, identity))
    await until(lambda: batcher.num_waiting == 3)
    with pytest.raises(QueueFullError, match=r"engine\.max_queue_tokens"):
        await batcher.submit([item(2)], identity)
    backend.gate.set()
    assert len(await big) == 5
    assert max(num_tokens for _, _, num_tokens in recorder.queues) <= 100


async def test_sample_over_every_bound_runs_alone(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend, max_queue_tokens=100)
    answers = await batcher.submit([item(5), item(500, first=3), item(5)], identity)
    assert [a.item() for a in answers] == [4, 502, 4]
    assert [3] in backend.batches


async def test_empty_call_is_answered_without_a_batch(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    assert await batcher.submit([], identity) == []
    assert backend.batches == []


async def test_close_finishes_what_is_in_flight_and_refuses_the_rest(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend, drain_s=20)
    held = await hold(batcher, backend)
    closing = asyncio.create_task(batcher.close())
    await until(lambda: batcher.is_closed)
    with pytest.raises(NotServingError):
        await batcher.submit([item(1)], identity)
    backend.gate.set()
    await closing
    assert [len(await call) for call in held] == [1, 1]
    await until(lambda: backend.is_closed)


async def test_close_fails_what_does_not_finish_in_time(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend, drain_s=0.05, max_queue_tokens=100)
    held = await hold(batcher, backend)
    feeding = asyncio.create_task(batcher.submit([item(40)] * 300, identity))
    await until(lambda: batcher.num_waiting == 2)
    await batcher.close()
    for outcome in await asyncio.gather(*held, feeding, return_exceptions=True):
        assert isinstance(outcome, NotServingError)
    backend.gate.set()
    await until(lambda: backend.is_closed)


async def test_call_that_is_still_being_encoded_fails_when_the_batcher_closes(put: Any) -> None:
    batcher = await put(FakeBackend(), drain_s=0.05)
    encoding, proceed = threading.Event(), threading.Event()

    def slow(one: Encoded) -> Encoded:
        encoding.set()
        assert proceed.wait(20)
        return one

    call = asyncio.create_task(batcher.submit([item(2)], slow))
    await until(encoding.is_set)
    await batcher.close()
    proceed.set()
    with pytest.raises(NotServingError):
        await asyncio.wait_for(call, timeout=20)


async def test_observer_is_told_of_batches_and_queue(put: Any, recorder: Recorder) -> None:
    batcher = await put(FakeBackend())
    await batcher.submit([item(8), item(10)], identity)
    await until(lambda: len(recorder.reports) == 1)
    (report,) = recorder.reports
    assert (report.model, report.num_items, report.num_tokens) == ("fake", 2, 18)
    assert report.num_computed_tokens == 20
    assert report.queue_wait_s >= 0
    assert report.forward_s >= 0
    assert ("fake", 2, 18) in recorder.queues
    assert recorder.queues[-1] == ("fake", 0, 0)


async def test_event_loop_runs_on_while_the_device_computes_and_samples_are_encoded(
    put: Any,
) -> None:
    backend = FakeBackend()
    batcher = await put(backend)

    def slow(one: Encoded) -> Encoded:
        assert backend.gate.wait(20)
        return one

    backend.gate.clear()
    call = asyncio.create_task(batcher.submit([item(2)], slow))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not call.done()
    backend.gate.set()
    assert len(await call) == 1


async def test_bug_in_the_batch_shape_fails_the_call_and_not_the_batcher(put: Any) -> None:
    backend = FakeBackend()
    batcher = await put(backend)
    good = backend.shape.select
    backend.shape.select = lambda window, budget: []  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="most urgent"):
        await asyncio.wait_for(batcher.submit([item(2)], identity), timeout=20)
    backend.shape.select = good  # type: ignore[method-assign]
    assert len(await batcher.submit([item(2)], identity)) == 1


async def test_models_on_one_device_share_one_thread() -> None:
    host = EngineHost(EngineSettings(device="cpu", drain_s=1))
    backends = [FakeBackend(), FakeBackend()]
    batchers = [await host.add_model("m", lambda device, b=b: b) for b in backends]
    calls = [batcher.submit([item(2)] * 40, identity) for batcher in batchers for _ in range(4)]
    await asyncio.gather(*calls)
    assert backends[0].threads == backends[1].threads == {"forward-cpu_0"}
    await host.close()
    with pytest.raises(NotServingError):
        await host.add_model("late", lambda device: FakeBackend())
