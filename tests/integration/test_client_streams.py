"""score_stream of both clients against a real gRPC server that misbehaves on request."""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from fake_reward_service import Script
from waiting import wait_until

from rewardsvc.errors import ItemErrorCode
from rewardsvc.policy_client import (
    AsyncRewardClient,
    InvalidRequest,
    RetryPolicy,
    RewardClient,
    ScoreItem,
    ServiceUnavailable,
)

QUICK = RetryPolicy(initial_backoff_s=0.02, max_backoff_s=0.1)
Collect = Callable[..., list[tuple[str, Any]]]


@pytest.fixture(params=["sync", "async"])
def collect(request: pytest.FixtureRequest) -> Collect:
    """All answers to some samples, by either client."""

    def with_sync(address: str, samples: Any, *, client: Any = None, **kwargs: Any) -> Any:
        with RewardClient(address, **{"retry": QUICK, "timeout_s": 30.0, **(client or {})}) as c:
            return list(c.score_stream("s", samples, **kwargs))

    def with_async(address: str, samples: Any, *, client: Any = None, **kwargs: Any) -> Any:
        async def run() -> Any:
            arguments = {"retry": QUICK, "timeout_s": 30.0, **(client or {})}
            async with AsyncRewardClient(address, **arguments) as c:
                return [answer async for answer in c.score_stream("s", samples, **kwargs)]

        return asyncio.run(run())

    return with_sync if request.param == "sync" else with_async


def numbers(count: int) -> list[dict[str, str]]:
    return [{"completion": str(i), "id": f"n{i}"} for i in range(count)]


def test_every_sample_is_answered_once_with_its_own_score(
    collect: Collect, address: str, script: Script
) -> None:
    answers = collect(address, numbers(500), window=50)
    assert len(answers) == 500
    assert {key: score.value for key, score in answers} == {f"n{i}": float(i) for i in range(500)}
    assert script.num_streams == 1


def test_no_samples_open_no_stream(collect: Collect, address: str, script: Script) -> None:
    assert collect(address, []) == []
    assert script.num_streams == 0


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_a_broken_stream_goes_on_without_loss_or_repetition(
    collect: Collect, address: str, script: Script, code: str
) -> None:
    script.break_stream_after = 7
    script.stream_code = grpc.StatusCode[code]
    answers = collect(address, numbers(40), window=10)
    assert sorted(key for key, _ in answers) == sorted(f"n{i}" for i in range(40))
    assert script.num_streams == 2


def test_an_answer_that_comes_twice_is_given_once(collect: Collect, address: str) -> None:
    answers = collect(address, [{"completion": "twice"}, {"completion": "1"}])
    assert sorted(key for key, _ in answers) == ["0", "1"]


def test_flaky_and_broken_items_are_told_apart(
    collect: Collect, address: str, script: Script
) -> None:
    script.flaky = {"1": 1}
    samples = [{"completion": text} for text in ("1", "bad", "\ud800")]
    scores = dict(collect(address, samples))
    assert scores["0"].value == 1.0
    assert scores["1"].error.code is ItemErrorCode.SANDBOX_FAILURE
    assert scores["2"].error.code is ItemErrorCode.INVALID_SAMPLE


def test_a_sample_without_an_answer_gets_an_error_in_time(collect: Collect, address: str) -> None:
    samples = [{"completion": "never"}, {"completion": "5"}]
    scores = dict(collect(address, samples, timeout_s=1.0))
    assert scores["0"].error.code is ItemErrorCode.DEADLINE_EXCEEDED
    assert scores["1"].value == 5.0


def test_a_refused_stream_raises(collect: Collect, address: str, script: Script) -> None:
    script.break_stream_after = 0
    script.stream_code = grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InvalidRequest, match="scripted end"):
        collect(address, numbers(1))


def test_a_service_that_stays_away_raises(collect: Collect) -> None:
    with pytest.raises(ServiceUnavailable):
        collect("127.0.0.1:1", numbers(1), timeout_s=1.0)


def test_an_error_of_the_source_is_raised(collect: Collect, address: str) -> None:
    def source() -> Iterator[ScoreItem]:
        yield ScoreItem(completion="1")
        raise LookupError("the source is dry")

    with pytest.raises(LookupError, match="the source is dry"):
        collect(address, source())


def test_no_more_than_the_window_is_taken_from_the_source(address: str) -> None:
    taken = 0

    def source() -> Iterator[ScoreItem]:
        nonlocal taken
        for i in range(100):
            taken += 1
            yield ScoreItem(completion=str(i))

    with RewardClient(address, timeout_s=30.0) as client:
        for num_answers, _ in enumerate(client.score_stream("s", source(), window=5)):
            # The answer at hand has not given its slot back yet.
            assert taken <= num_answers + 5
    assert taken == 100


def test_a_source_may_wait_for_answers(address: str) -> None:
    """A loop in which the next sample depends on the last answer."""
    feed: queue.Queue[ScoreItem | None] = queue.Queue()
    feed.put(ScoreItem(completion="0"))
    seen = []
    with RewardClient(address, timeout_s=30.0) as client:
        for _, score in client.score_stream("s", iter(feed.get, None)):
            seen.append(score.value)
            feed.put(ScoreItem(completion=str(len(seen))) if len(seen) < 5 else None)
    assert seen == [0, 1, 2, 3, 4]


async def test_an_async_source_may_wait_for_answers(address: str) -> None:
    feed: asyncio.Queue[ScoreItem | None] = asyncio.Queue()
    feed.put_nowait(ScoreItem(completion="0"))

    async def source() -> AsyncIterator[ScoreItem]:
        while (item := await feed.get()) is not None:
            yield item

    seen = []
    async with AsyncRewardClient(address, timeout_s=30.0) as client:
        async for _, score in client.score_stream("s", source()):
            seen.append(score.value)
            feed.put_nowait(ScoreItem(completion=str(len(seen))) if len(seen) < 5 else None)
    assert seen == [0, 1, 2, 3, 4]


def test_leaving_early_leaves_the_client_usable(address: str) -> None:
    with RewardClient(address, timeout_s=30.0) as client:
        answers = client.score_stream("s", iter(lambda: ScoreItem(completion="1"), None), window=3)
        assert next(answers)[1].value == 1.0
        answers.close()  # type: ignore[attr-defined]
        assert client.score("s", ["p"], ["2"]).values.tolist() == [2]


def test_an_interrupt_ends_a_stream_that_waits(address: str, script: Script) -> None:
    def interrupt() -> None:
        wait_until(lambda: bool(script.requests), 20.0)
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # not the one that waits

    threading.Thread(target=interrupt).start()
    before = time.monotonic()
    with RewardClient(address) as client:
        with pytest.raises(KeyboardInterrupt):
            list(client.score_stream("s", [{"completion": "never"}]))
        assert time.monotonic() - before < 15.0
        assert [answer.value for _, answer in client.score_stream("s", numbers(1))] == [0.0]
