"""What a stream decides, without a server and without a clock."""

import random
from typing import Any

import numpy as np
import pytest

from rewardsvc.errors import ItemErrorCode
from rewardsvc.policy_client import (
    DeadlineExceeded,
    InvalidRequest,
    ItemScore,
    RetryPolicy,
    ScoreItem,
    ServerBug,
)
from rewardsvc.policy_client.client.addresses import AddressPool
from rewardsvc.policy_client.client.errors import RpcFailure
from rewardsvc.policy_client.client.jobs import JobEnv
from rewardsvc.policy_client.client.settings import ClientSettings
from rewardsvc.policy_client.client.stream import (
    Ended,
    Fed,
    Received,
    SourceEnded,
    StreamState,
    check_window,
)
from rewardsvc.v1 import reward_pb2 as pb

DOWN = Ended(RpcFailure("UNAVAILABLE", "refused"))


def stream(**settings: Any) -> StreamState:
    client = ClientSettings(addresses=("a", "b"), **settings)
    pool = AddressPool(client.addresses)
    return StreamState(
        JobEnv(settings=client, pool=pool, started_at=0.0, timeout_s=10.0, rng=random.Random(0)),
        "s",
    )


def feed(state: StreamState, *ids: str, now: float = 0.0) -> None:
    for sample_id in ids:
        assert state.handle(Fed(ScoreItem(completion="c", id=sample_id)), now) == []


def sent(state: StreamState, now: float = 0.0) -> list[list[str]]:
    return [[sample.id for sample in message.samples] for message in state.messages(now)]


def answer(*ids: str, error: int | None = None, retryable: bool = True) -> Received:
    batch = pb.ScoreBatch(values=np.full(len(ids), 1 if error is None else np.nan, "<f4").tobytes())
    if error is not None:
        for index in range(len(ids)):
            item_error = pb.ItemError(code=error, retryable=retryable)  # type: ignore[arg-type]
            batch.details.add(index=index, error=item_error)
    return Received(pb.ScoreStreamResponse(ids=ids, batch=batch))


def ids_of(answers: list[tuple[str, ItemScore]]) -> list[str]:
    return [sample_id for sample_id, _ in answers]


def test_nothing_is_opened_before_there_is_something_to_send() -> None:
    state = stream()
    assert state.connect_to(0.0) is None
    feed(state, "x")
    assert state.messages(0.0) == []
    assert state.connect_to(0.0) == "a"
    assert state.connect_to(0.0) is None
    assert sent(state) == [["x"]]
    assert sent(state) == []


def test_answers_come_in_any_order_and_once() -> None:
    state = stream()
    feed(state, "x", "y", "z")
    state.connect_to(0.0)
    assert sent(state) == [["x", "y", "z"]]
    assert ids_of(state.handle(answer("z", "x"), 1.0)) == ["z", "x"]
    assert state.handle(answer("x", "stranger"), 1.0) == []
    assert not state.finished
    state.handle(SourceEnded(), 1.0)
    assert ids_of(state.handle(answer("y"), 1.0)) == ["y"]
    assert state.finished


def test_a_broken_connection_sends_what_has_no_answer_again_elsewhere() -> None:
    state = stream()
    feed(state, "x", "y", "z")
    assert state.connect_to(0.0) == "a"
    sent(state)
    state.handle(answer("y"), 0.5)
    state.handle(DOWN, 1.0)
    assert state.connect_to(1.0) == "b"
    assert sent(state, 1.0) == [["x", "z"]]
    assert state.handle(answer("y"), 2.0) == []


def test_an_early_goodbye_and_an_aged_connection_are_no_errors() -> None:
    state = stream()
    feed(state, "x")
    for ending in (Ended(), Ended(RpcFailure("DEADLINE_EXCEEDED", "too old"))):
        assert state.connect_to(2.0) is not None
        assert sent(state, 2.0) == [["x"]]
        state.handle(ending, 2.0)
    assert ids_of(state.handle(answer("x"), 3.0)) == ["x"]


def test_a_refused_stream_raises() -> None:
    state = stream()
    feed(state, "x")
    state.connect_to(0.0)
    with pytest.raises(InvalidRequest, match="ScoreStream with 's' at a"):
        state.handle(Ended(RpcFailure("INVALID_ARGUMENT", "no")), 1.0)


def test_retryable_items_are_sent_again_a_bounded_number_of_times() -> None:
    state = stream(retry=RetryPolicy(max_item_attempts=2, max_backoff_s=0.1))
    feed(state, "x")
    state.connect_to(0.0)
    sent(state)
    broken = answer("x", error=pb.ITEM_ERROR_CODE_SANDBOX_FAILURE)
    assert state.handle(broken, 0.0) == []
    assert sent(state, 0.2) == [["x"]]
    ((_, score),) = state.handle(broken, 0.2)
    assert score.error is not None


@pytest.mark.parametrize("code", ["QUEUE_FULL", "UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_call_level_item_errors_are_retried_until_the_samples_deadline(code: str) -> None:
    state = stream(retry=RetryPolicy(max_item_attempts=1))
    feed(state, "x")
    state.connect_to(0.0)
    number = pb.ItemErrorCode.Value(f"ITEM_ERROR_CODE_{code}")
    now, num_sent = 0.0, 0
    while not (answers := state.handle(answer("x", error=number, retryable=False), now)):
        now += state.wait_s(now)
        num_sent += len(sent(state, now))
    assert num_sent > 3
    assert now < 10.0
    assert answers[0][1].error is not None


def test_a_late_sample_is_an_item_error_and_a_dead_service_raises() -> None:
    state = stream()
    feed(state, "x")
    feed(state, "y", now=5.0)
    state.connect_to(5.0)
    sent(state, 9.0)
    assert state.wait_s(9.0) == 1.0
    ((sample_id, score),) = state.expired(10.0)
    assert sample_id == "x"
    assert score.error is not None
    assert score.error.code is ItemErrorCode.DEADLINE_EXCEEDED
    assert state.handle(answer("x"), 11.0) == []
    state.closed()
    with pytest.raises(DeadlineExceeded):
        state.expired(15.0)


def test_bad_samples_are_answered_here_and_bad_programs_raise() -> None:
    state = stream(max_message_bytes=4096)
    ((sample_id, score),) = state.handle(Fed({"completion": "\ud800"}), 0.0)
    assert sample_id == "0"
    assert score.error is not None
    assert score.error.code is ItemErrorCode.INVALID_SAMPLE
    ((_, score),) = state.handle(Fed({"completion": "x" * 5000, "id": "big"}), 0.0)
    assert score.error is not None
    assert score.error.code is ItemErrorCode.TOO_LONG
    with pytest.raises(TypeError, match="sample 2: completion is int"):
        state.handle(Fed(ScoreItem(completion=3)), 0.0)  # type: ignore[arg-type]
    feed(state, "x")
    with pytest.raises(ValueError, match="'x' is in flight already"):
        state.handle(Fed(ScoreItem(completion="c", id="x")), 0.0)


def test_an_error_of_the_source_and_a_malformed_reply_are_raised() -> None:
    state = stream()
    with pytest.raises(ZeroDivisionError):
        state.handle(SourceEnded(ZeroDivisionError()), 0.0)
    with pytest.raises(ServerBug, match="values"):
        state.handle(Received(pb.ScoreStreamResponse(ids=["x"])), 0.0)


def test_messages_are_bounded() -> None:
    state = stream(max_samples_per_call=2)
    feed(state, "a", "b", "c")
    state.connect_to(0.0)
    assert sent(state) == [["a", "b"], ["c"]]


def test_a_window_holds_something() -> None:
    assert check_window(1) == 1
    with pytest.raises(ValueError, match="window is 0"):
        check_window(0)
