"""Both clients against a real gRPC server that misbehaves on request."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from fake_reward_service import Script, start
from waiting import wait_until

from rewardsvc.errors import ItemErrorCode
from rewardsvc.policy_client import (
    AsyncRewardClient,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    RetryPolicy,
    RewardClient,
    ScorerUnusable,
    ServerBug,
    ServiceUnavailable,
    Unauthenticated,
    UnknownScorer,
    Verdict,
)
from rewardsvc.v1 import reward_pb2 as pb

QUICK = RetryPolicy(initial_backoff_s=0.02, max_backoff_s=0.1)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Blocking:
    """An `AsyncRewardClient` with the methods of a `RewardClient`, so that one test serves both."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncRewardClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))

    def shut(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of either kind."""
    clients: list[Any] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        cls = RewardClient if request.param == "sync" else Blocking
        clients.append(cls(*args, **{"retry": QUICK, "timeout_s": 30.0, **kwargs}))
        return clients[-1]

    yield make
    for client in clients:
        client.shut() if isinstance(client, Blocking) else client.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_ten_thousand_samples_keep_their_order(connect: Any, address: str, script: Script) -> None:
    client = connect(address, max_in_flight=4, max_samples_per_call=500)
    batch = client.score("s", ["p"] * 10_000, [str(i) for i in range(10_000)])
    np.testing.assert_array_equal(batch.values, np.arange(10_000, dtype=np.float32))
    assert batch.values.flags.writeable
    assert len(script.requests) == 20
    assert script.max_active <= 4


def test_a_megabyte_a_sample_stays_below_the_servers_message_limit(
    connect: Any, address: str, script: Script
) -> None:
    client = connect(address)
    texts = ["x" * 1_000_000] * 9 + ["x" * 5_000_000]
    batch = client.score("s", ["p"] * 10, texts)
    assert batch.values[:9].tolist() == [1_000_000] * 9
    assert batch.errors[9].code is ItemErrorCode.TOO_LONG
    assert all(request.ByteSize() <= 4 * 1024 * 1024 for request in script.requests)


def test_chunks_the_server_finds_too_large_are_halved(connect: Any, script: Script) -> None:
    server, port = start(script, **{"grpc.max_receive_message_length": 50_000})
    try:
        client = connect(f"127.0.0.1:{port}")
        batch = client.score("s", ["p"] * 9, ["x" * 10_000] * 8 + ["x" * 60_000])
        assert batch.values[:8].tolist() == [10_000] * 8
        assert batch.errors[8].code is ItemErrorCode.TOO_LONG
    finally:
        server.stop(0).wait()


def test_every_field_arrives(connect: Any, address: str, script: Script) -> None:
    client = connect(address, client_id="me", priority=5, api_key="k")
    batch = client.score(
        "s",
        ["p", [{"role": "user", "content": "q"}]],
        ["2", "3"],
        answers=["2", "4"],
        tests=[[1], None],
        rubrics=["r", None],
        ids=["a", "b"],
        metadata=[{"k": 1}, None],
        priority=-7,
    )
    request = script.requests[0]
    assert (request.scorer, request.client_id, request.priority) == ("s", "me", -7)
    first = request.samples[0]
    assert (first.id, first.tests_json, first.rubric, first.metadata_json) == (
        "a",
        "[1]",
        "r",
        '{"k":1}',
    )
    assert request.samples[1].prompt_messages.messages[0].content == "q"
    assert script.metadata[0]["authorization"] == "Bearer k"
    assert 20 < script.times_left[0] < 31
    assert batch.verdicts == [Verdict.ACCEPTED, Verdict.WRONG_ANSWER]
    assert batch.values.tolist() == [1, 0]
    assert batch.explanations == ["compared", "compared"]
    assert batch.ids == ["a", "b"]
    assert batch.components["prompt_length"].tolist() == [1, 0]
    assert batch.version == "v1"


def test_one_bad_sample_harms_no_other(connect: Any, address: str) -> None:
    batch = connect(address).score("s", ["p"] * 5, ["1", "bad", "\ud800", "4", None])
    assert batch.mask.tolist() == [True, False, False, True, False]
    assert [error and error.code for error in batch.errors] == [
        None,
        ItemErrorCode.SANDBOX_FAILURE,
        ItemErrorCode.INVALID_SAMPLE,
        None,
        ItemErrorCode.INVALID_SAMPLE,
    ]


def test_a_flaky_item_is_sent_again(connect: Any, address: str, script: Script) -> None:
    script.flaky = {"2": 2, "3": 99}
    batch = connect(address).score("s", ["p"] * 4, ["1", "2", "3", "4"])
    assert batch.mask.tolist() == [True, True, False, True]
    assert [len(request.samples) for request in script.requests] == [4, 2, 2]


def test_failures_that_pass_are_outlived(connect: Any, address: str, script: Script) -> None:
    script.statuses = [(UNAVAILABLE, None), (EXHAUSTED, 50), (UNAVAILABLE, None)]
    assert connect(address).score("s", ["p"], ["2"]).values.tolist() == [2]
    assert len(script.requests) == 4


def test_the_retry_delay_is_honoured(connect: Any, address: str, script: Script) -> None:
    script.statuses = [(EXHAUSTED, 700)]
    started = time.monotonic()
    connect(address).score("s", ["p"], ["2"])
    assert time.monotonic() - started >= 0.7


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, UnknownScorer),
        (grpc.StatusCode.FAILED_PRECONDITION, ScorerUnusable),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.INTERNAL, ServerBug),
        (grpc.StatusCode.CANCELLED, Cancelled),
    ],
)
def test_what_cannot_succeed_is_raised_after_one_attempt(
    connect: Any, address: str, script: Script, code: grpc.StatusCode, error: type[Exception]
) -> None:
    script.statuses = [(code, None)] * 5
    with pytest.raises(error, match=rf"Score with 's' at {address}, 1 attempt .*{code.name}"):
        connect(address).score("s", ["p"], ["1"])
    assert len(script.requests) == 1


def test_overload_that_lasts_is_raised_in_time(connect: Any, address: str, script: Script) -> None:
    script.statuses = [(EXHAUSTED, 60_000)] * 5
    with pytest.raises(Overloaded) as error:
        connect(address).score("s", ["p"], ["1"], timeout_s=5)
    assert error.value.retry_delay_s == 60.0


def test_the_deadline_ends_a_slow_call(connect: Any, address: str, script: Script) -> None:
    script.delay_s = 60.0
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"timeout_s=0\.5"):
        connect(address).score("s", ["p"], ["1"], timeout_s=0.5)
    assert time.monotonic() - started < 30


def test_nobody_at_home_is_raised_before_the_deadline(connect: Any) -> None:
    with pytest.raises(ServiceUnavailable, match="is the server running"):
        connect(f"127.0.0.1:{free_port()}").score("s", ["p"], ["1"], timeout_s=1.0)


def test_a_dead_address_does_not_hold_up_the_others(
    connect: Any, address: str, script: Script
) -> None:
    client = connect([f"127.0.0.1:{free_port()}", address], max_samples_per_call=1)
    assert client.score("s", ["p"] * 20, [str(i) for i in range(20)]).mask.all()
    assert len(script.requests) == 20


def test_work_is_shared_among_addresses(connect: Any, address: str, script: Script) -> None:
    other = Script(version="v2")
    server, port = start(other)
    try:
        client = connect([address, f"127.0.0.1:{port}"], max_samples_per_call=1)
        batch = client.score("s", ["p"] * 20, [str(i) for i in range(20)])
    finally:
        server.stop(0).wait()
    assert batch.values.tolist() == list(range(20))
    assert len(script.requests) >= 5
    assert len(other.requests) >= 5
    assert set(batch.version.split("|")) == {"v1", "v2"}


def test_a_malformed_reply_is_never_broadcast(connect: Any, address: str, script: Script) -> None:
    def shorten(response: Any) -> None:
        response.batch.values = response.batch.values[:4]

    script.corrupt = shorten
    with pytest.raises(ServerBug, match="values has 4 bytes; 3 float32 values take 12"):
        connect(address).score("s", ["p"] * 3, ["1", "2", "3"])


def test_logprobs_arrive_by_sequence(connect: Any, address: str, script: Script) -> None:
    client = connect(address, max_samples_per_call=2)
    result = client.token_logprobs(
        "m", [[1], [1, 2], [], [3]], [[2, 4], [666, 1], [5], []], temperature=2.0, entropy=True
    )
    assert [row.tolist() for row in result.logprobs[::3]] == [[-1, -2], []]
    assert result.entropies[0].tolist() == [1, 2]
    assert [error and error.code for error in result.errors] == [
        None,
        ItemErrorCode.TOO_LONG,
        ItemErrorCode.INVALID_SAMPLE,
        None,
    ]
    values, mask = result.padded()
    assert values.shape == (4, 2)
    assert mask.tolist() == [[True, True], [False] * 2, [False] * 2, [False] * 2]
    assert sorted(len(request.sequences) for request in script.requests) == [1, 2]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_out_of_range_is_named(
    connect: Any, address: str, temperature: float
) -> None:
    with pytest.raises(ValueError, match="temperature is"):
        connect(address).token_logprobs("m", [[1]], [[2]], temperature=temperature)


def test_waiting_until_ready(connect: Any, address: str, script: Script) -> None:
    script.states = [pb.SCORER_STATE_LOADING, pb.SCORER_STATE_LOADING, pb.SCORER_STATE_READY]
    info = connect(address).wait_until_ready(20)
    assert info.scorer("s").state == "ready"
    assert (info.max_samples_per_call, info.max_message_bytes) == (7, 9)
    assert len(script.metadata) == 3


def test_waiting_for_what_cannot_become_ready(connect: Any, address: str, script: Script) -> None:
    client = connect(address)
    with pytest.raises(UnknownScorer, match="'other'.*there are: s"):
        client.wait_until_ready(20, scorers=["other"])
    script.states = [pb.SCORER_STATE_LOADING]
    with pytest.raises(DeadlineExceeded, match="s is loading"):
        client.wait_until_ready(0.5)
    script.states = [pb.SCORER_STATE_FAILED]
    with pytest.raises(ScorerUnusable, match="out of luck"):
        client.wait_until_ready(20)


def test_an_interrupt_cancels_the_rpcs_in_flight(address: str, script: Script) -> None:
    script.delay_s = 60.0
    with RewardClient(address, max_samples_per_call=1, max_in_flight=3) as client:
        interrupted = threading.Event()

        def interrupt() -> None:
            assert wait_until(lambda: script.num_active == 3, 20.0)
            time.sleep(0.2)  # the caller is done with starting them, and waits
            interrupted.set()
            # Not the thread that waits, whose sleep this leaves undisturbed. The same happens, by
            # chance, to a signal that comes just before a thread goes to sleep.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            client.score("s", ["p"] * 9, ["1"] * 9)
        assert interrupted.is_set()
        assert wait_until(lambda: script.num_cancelled == 3, 20.0)
        assert len(script.requests) == 3


async def test_a_cancelled_task_cancels_its_rpcs(address: str, script: Script) -> None:
    script.delay_s = 60.0
    async with AsyncRewardClient(address, max_samples_per_call=1, max_in_flight=2) as client:
        task = asyncio.create_task(client.score("s", ["p"] * 3, ["1"] * 3))
        while script.num_active < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while script.num_cancelled < 2:
            await asyncio.sleep(0.01)


async def test_closing_ends_a_call_under_way_with_an_error(address: str, script: Script) -> None:
    script.delay_s = 60.0
    client = AsyncRewardClient(address)
    task = asyncio.create_task(client.score("s", ["p"], ["1"]))
    while script.num_active < 1:
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(Cancelled):
        await task


def test_one_client_serves_many_threads(address: str) -> None:
    results: dict[int, list[float]] = {}
    with RewardClient(address, max_samples_per_call=3) as client:

        def work(number: int) -> None:
            texts = [str(number * 100 + i) for i in range(10)]
            results[number] = client.score("s", ["p"] * 10, texts).values.tolist()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == {n: [float(n * 100 + i) for i in range(10)] for n in range(8)}


def test_one_async_client_serves_one_event_loop_after_another(address: str) -> None:
    client = AsyncRewardClient(address)

    async def call() -> list[float]:
        values: list[float] = (await client.score("s", ["p"], ["7"])).values.tolist()
        return values

    assert [asyncio.run(call()) for _ in range(3)] == [[7.0]] * 3
