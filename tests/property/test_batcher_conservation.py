"""Whatever happens to calls, every one ends, and every item gets its own answer, once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fake_backend import FakeBackend, item
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.engine.host import EngineHost, EngineSettings
from rewardsvc.engine.types import Encoded
from rewardsvc.errors import (
    DeadlinePassedError,
    ItemError,
    ItemErrorCode,
    ItemFailure,
    QueueFullError,
)
from rewardsvc.scoring.context import CallContext, call_context

POISON, UNREADABLE = 1000, 2000
BUDGET = 64


@dataclass(frozen=True)
class Plan:
    """One call: its items as (length, kind), and what becomes of it."""

    items: list[tuple[int, int]]
    priority: int
    cancel_after: int | None


plans = st.builds(
    Plan,
    items=st.lists(
        st.tuples(st.integers(1, 80), st.sampled_from([0, 0, 0, POISON, UNREADABLE])), max_size=30
    ),
    priority=st.integers(-1, 1),
    cancel_after=st.one_of(st.none(), st.integers(0, 20)),
)


def fault(batch: Sequence[Encoded]) -> None:
    if any(one.token_ids[0] == POISON for one in batch):
        raise RuntimeError("poisoned")


def encode(one: tuple[int, int]) -> Encoded:
    if one[1] == UNREADABLE:
        raise ItemFailure(ItemErrorCode.INVALID_SAMPLE, "unreadable")
    return item(*one)


@settings(max_examples=40, deadline=None)
@given(st.lists(plans, min_size=1, max_size=8))
def test_every_call_ends_and_every_item_gets_its_own_answer(calls: list[Plan]) -> None:
    asyncio.run(_check(calls))


async def _check(calls: list[Plan]) -> None:
    backend = FakeBackend(fault)
    limits = EngineSettings(
        device="cpu", max_batch_tokens=BUDGET, max_queue_tokens=200, max_queue_items=60
    )
    host = EngineHost(limits)
    batcher = await host.add_model("fake", lambda device: backend)
    outcomes = await asyncio.gather(*(_run(batcher, plan) for plan in calls))
    for plan, answers in zip(calls, outcomes, strict=True):
        if answers is None:
            continue
        assert len(answers) == len(plan.items)
        for (length, kind), answer in zip(plan.items, answers, strict=True):
            if kind == POISON:
                assert isinstance(answer, ItemError)
                assert answer.code is ItemErrorCode.MODEL_FAILURE
            elif kind == UNREADABLE:
                assert isinstance(answer, ItemError)
                assert answer.code is ItemErrorCode.INVALID_SAMPLE
            else:
                assert not isinstance(answer, ItemError)
                assert answer.item() == length - 1 + kind
    assert batcher.load == 0, "a call that is over still counts"
    assert all(
        cost <= BUDGET or len(batch) == 1
        for cost, batch in zip(backend.costs, backend.batches, strict=True)
    )
    await host.close()


async def _run(batcher, plan):  # type: ignore[no-untyped-def]
    with call_context(CallContext(priority=plan.priority)):
        task = asyncio.ensure_future(batcher.submit(plan.items, encode))
    if plan.cancel_after is not None:
        for _ in range(plan.cancel_after):
            await asyncio.sleep(0)
        task.cancel()
    try:
        return await task
    except (asyncio.CancelledError, QueueFullError, DeadlinePassedError):
        return None
