"""What a job decides, without a server and without a clock."""

import random
from typing import Any

import numpy as np
import pytest

from rewardsvc.errors import ItemErrorCode
from rewardsvc.policy_client import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RetryPolicy,
    ScoreItem,
    ServerBug,
    ServiceUnavailable,
)
from rewardsvc.policy_client.client.addresses import AddressPool
from rewardsvc.policy_client.client.calls import InfoJob, ScoreJob
from rewardsvc.policy_client.client.errors import RpcFailure
from rewardsvc.policy_client.client.jobs import Attempt, JobEnv
from rewardsvc.policy_client.client.settings import ClientSettings
from rewardsvc.v1 import reward_pb2 as pb

DOWN = RpcFailure("UNAVAILABLE", "refused")
TOO_LARGE = RpcFailure("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)")


def env(*, timeout_s: float = 10.0, addresses: str = "a", **settings: Any) -> JobEnv:
    client = ClientSettings(addresses=tuple(addresses), **settings)
    return JobEnv(
        settings=client,
        pool=AddressPool(client.addresses),
        started_at=0.0,
        timeout_s=timeout_s,
        rng=random.Random(0),
    )


def job_of(texts: list[str], environment: JobEnv) -> ScoreJob:
    return ScoreJob(environment, "s", [ScoreItem(completion=text) for text in texts])


def reply(attempt: Attempt, *, retryable: tuple[str, ...] = ()) -> pb.ScoreResponse:
    assert isinstance(attempt.request, pb.ScoreRequest)
    texts = [sample.completion_text for sample in attempt.request.samples]
    batch = pb.ScoreBatch()
    for index, text in enumerate(texts):
        if text in retryable:
            error = pb.ItemError(code=pb.ITEM_ERROR_CODE_SANDBOX_FAILURE, retryable=True)
            batch.details.add(index=index, error=error)
    values = [float("nan") if text in retryable else float(text) for text in texts]
    batch.values = np.array(values, "<f4").tobytes()
    return pb.ScoreResponse(batch=batch)


def test_no_samples_need_no_rpc() -> None:
    job = job_of([], env())
    assert job.starts(0.0) == []
    assert job.done
    assert len(job.result()) == 0


def test_the_rest_of_the_time_goes_on_the_wire() -> None:
    job = job_of(["1"], env(timeout_s=10.0))
    (attempt,) = job.starts(0.0)
    assert attempt.timeout_s == 10.0
    job.failed(attempt, DOWN, 4.0)
    (attempt,) = job.starts(4.0 + job.wait_s(4.0))
    assert 5.0 <= attempt.timeout_s <= 6.0


def test_a_retry_goes_to_the_other_address_at_once() -> None:
    job = job_of(["1"], env(addresses="ab"))
    (attempt,) = job.starts(0.0)
    assert attempt.address == "a"
    job.failed(attempt, DOWN, 0.0)
    (attempt,) = job.starts(0.0)
    assert attempt.address == "b"


def test_the_servers_retry_delay_is_waited_for() -> None:
    job = job_of(["1"], env())
    (attempt,) = job.starts(0.0)
    job.failed(attempt, RpcFailure("RESOURCE_EXHAUSTED", "", 2.0), 0.0)
    assert job.starts(1.99) == []
    assert 2.0 <= job.wait_s(0.0) <= 2.1


def test_a_retry_that_would_be_too_late_is_not_waited_for() -> None:
    job = job_of(["1"], env(timeout_s=10.0))
    (attempt,) = job.starts(0.0)
    with pytest.raises(Overloaded) as error:
        job.failed(attempt, RpcFailure("RESOURCE_EXHAUSTED", "full", 11.0), 0.0)
    assert error.value.retry_delay_s == 11.0


def test_attempts_are_bounded_if_asked_for() -> None:
    job = job_of(["1"], env(retry=RetryPolicy(max_attempts=2)))
    (attempt,) = job.starts(0.0)
    job.failed(attempt, DOWN, 0.0)
    (attempt,) = job.starts(1.0)
    with pytest.raises(ServiceUnavailable, match=r"'s' at a, 2 attempts in 1\.0 s.*refused"):
        job.failed(attempt, DOWN, 1.0)


def test_a_deadline_after_failures_names_them() -> None:
    job = job_of(["1"], env(timeout_s=3.0))
    (attempt,) = job.starts(0.0)
    job.failed(attempt, DOWN, 0.0)
    (attempt,) = job.starts(1.0)
    with pytest.raises(DeadlineExceeded, match="timeout_s=3") as error:
        job.failed(attempt, RpcFailure("DEADLINE_EXCEEDED", "late"), 3.0)
    assert "UNAVAILABLE: refused" in str(error.value)


def test_chunks_that_were_never_sent_end_with_the_deadline() -> None:
    job = job_of(["1", "2"], env(max_samples_per_call=1, max_in_flight=1))
    job.starts(0.0)
    assert job.wait_s(9.0) == 1.0
    with pytest.raises(DeadlineExceeded):
        job.starts(10.0)


def test_an_rpc_that_outlives_its_deadline_is_given_up() -> None:
    job = job_of(["1"], env())
    job.starts(0.0)
    assert job.starts(10.0) == []
    assert job.wait_s(10.0) == 1.0
    with pytest.raises(DeadlineExceeded, match="no RPC has ended"):
        job.starts(11.0)


def test_retryable_items_alone_are_sent_again_a_bounded_number_of_times() -> None:
    job = job_of(["1", "2", "3"], env(retry=RetryPolicy(max_item_attempts=3)))
    sent, now = [], 0.0
    while not job.done:
        for attempt in job.starts(now):
            assert isinstance(attempt.request, pb.ScoreRequest)
            sent.append([sample.completion_text for sample in attempt.request.samples])
            job.succeeded(attempt, reply(attempt, retryable=("2",)), now)
        now += job.wait_s(now)
    assert sent == [["1", "2", "3"], ["2"], ["2"]]
    result = job.result()
    assert result.mask.tolist() == [True, False, True]
    assert result.errors[1] is not None
    assert result.errors[1].code is ItemErrorCode.SANDBOX_FAILURE


@pytest.mark.parametrize("failure", [DOWN, RpcFailure("INTERNAL")])
def test_failing_to_send_an_item_again_keeps_what_there_is(failure: RpcFailure) -> None:
    job = job_of(["1", "2"], env(retry=RetryPolicy(max_attempts=1)))
    (attempt,) = job.starts(0.0)
    job.succeeded(attempt, reply(attempt, retryable=("2",)), 0.0)
    (attempt,) = job.starts(job.wait_s(0.0))
    job.failed(attempt, failure, 1.0)
    assert job.done
    assert job.result().mask.tolist() == [True, False]


def test_the_deadline_ends_item_retries_without_an_error() -> None:
    job = job_of(["1", "2"], env(retry=RetryPolicy(initial_backoff_s=5, max_backoff_s=5)))
    (attempt,) = job.starts(0.0)
    job.succeeded(attempt, reply(attempt, retryable=("2",)), 0.0)
    assert job.starts(10.0) == []
    assert job.done
    assert job.result().values[0] == 1.0


def test_a_chunk_that_is_too_large_for_the_server_is_halved() -> None:
    job = job_of(["1", "2", "3"], env())
    now = 0.0
    while not job.done:
        for attempt in job.starts(now):
            assert isinstance(attempt.request, pb.ScoreRequest)
            texts = [sample.completion_text for sample in attempt.request.samples]
            if len(texts) > 1 or texts == ["2"]:
                job.failed(attempt, TOO_LARGE, now)
            else:
                job.succeeded(attempt, reply(attempt), now)
    result = job.result()
    assert result.mask.tolist() == [True, False, True]
    assert result.errors[1] is not None
    assert result.errors[1].code is ItemErrorCode.TOO_LONG


def prompts_of(attempt: Attempt) -> list[str]:
    assert isinstance(attempt.request, pb.ScoreRequest)
    return [sample.prompt_text for sample in attempt.request.samples]


def test_completions_of_one_prompt_travel_together() -> None:
    # As a loader that shuffles samples sends them; a pairwise scorer compares those of a prompt.
    prompts = ["p", "q", "r", "q", "p", "r", "q", "p", "r"]
    items = [ScoreItem(prompt=prompt, completion=str(i)) for i, prompt in enumerate(prompts)]
    job = ScoreJob(env(max_samples_per_call=7), "s", items)
    attempts = job.starts(0.0)
    assert [prompts_of(attempt) for attempt in attempts] == [[*"pppqqq"], [*"rrr"]]
    for attempt in attempts:
        job.succeeded(attempt, reply(attempt), 0.0)
    assert job.result().values.tolist() == [float(i) for i in range(9)]


def test_halving_divides_between_prompts() -> None:
    items = [ScoreItem(prompt=prompt, completion="1") for prompt in "pqqqq"]
    job = ScoreJob(env(), "s", items)
    (attempt,) = job.starts(0.0)
    job.failed(attempt, TOO_LARGE, 0.0)
    assert [prompts_of(attempt) for attempt in job.starts(0.0)] == [["p"], [*"qqqq"]]


def test_a_group_that_is_too_large_for_a_message_is_divided() -> None:
    items = [ScoreItem(prompt="p", completion=str(i)) for i in range(5)]
    job = ScoreJob(env(max_samples_per_call=2), "s", items)
    assert [len(prompts_of(attempt)) for attempt in job.starts(0.0)] == [2, 2, 1]


def test_a_sample_over_the_message_limit_is_an_item_error() -> None:
    job = job_of(["1", "x" * 5000, "3"], env(max_message_bytes=4096))
    attempts = job.starts(0.0)
    for attempt in attempts:
        job.succeeded(attempt, reply(attempt), 0.0)
    assert job.result().mask.tolist() == [True, False, True]
    assert "max_message_bytes" in str(job.result().errors[1])


def test_a_call_without_items_that_is_too_large_raises() -> None:
    job = InfoJob(env())
    (attempt,) = job.starts(0.0)
    with pytest.raises(InvalidRequest, match="max_message_bytes"):
        job.failed(attempt, TOO_LARGE, 0.0)


def test_a_malformed_reply_names_the_scorer_and_the_address() -> None:
    job = job_of(["1", "2"], env())
    (attempt,) = job.starts(0.0)
    response = pb.ScoreResponse(batch=pb.ScoreBatch(values=b"\0\0\0\0"))
    with pytest.raises(ServerBug, match=r"'s' at a.*values has 4 bytes; 2 float32 values take 8"):
        job.succeeded(attempt, response, 0.0)


def test_an_abandoned_attempt_gives_its_address_back() -> None:
    environment = env(addresses="ab")
    job = job_of(["1"], environment)
    (attempt,) = job.starts(0.0)
    job.abandoned(attempt)
    assert environment.pool.acquire(0.0) == "b"
    assert environment.pool.acquire(0.0) == "a"
