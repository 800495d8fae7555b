"""Reward functions, called as TRL calls them."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
from fake_reward_service import Script

from rewardsvc.policy_client import (
    AsyncRewardClient,
    OnError,
    RetryPolicy,
    RewardClient,
    ServiceUnavailable,
)

PROMPTS = [[{"role": "user", "content": "1+1="}]] * 2
COMPLETIONS = [[{"role": "assistant", "content": "2"}], [{"role": "assistant", "content": "3"}]]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, address: str) -> Callable[..., list[float | None]]:
    """Makes a reward function, calls it once, closes it."""

    def with_sync(options: dict[str, Any], **columns: Any) -> list[float | None]:
        function = RewardClient(address, timeout_s=30.0).reward_function("s", **options)
        try:
            return function(**columns)
        finally:
            function.close()

    async def with_async(options: dict[str, Any], **columns: Any) -> list[float | None]:
        function = AsyncRewardClient(address, timeout_s=30.0).reward_function("s", **options)
        try:
            return await function(**columns)
        finally:
            await function.close()

    if request.param == "sync":
        return with_sync
    return lambda options, **columns: asyncio.run(with_async(options, **columns))


def test_no_reward_is_none_and_no_zero(call: Any) -> None:
    rewards = call({}, prompts=["p"] * 3, completions=["0", "bad", "2"], completion_ids=[[1]] * 3)
    assert rewards == [0.0, None, 2.0]


@pytest.mark.parametrize("column", ["answer", "answers", "solution", "ground_truth", "target"])
def test_the_usual_answer_columns_are_found(call: Any, column: str) -> None:
    columns = {column: ["2", "2"]}
    assert call({}, prompts=["p"] * 2, completions=["2", "3"], **columns) == [1.0, 0.0]


def test_answers_that_are_no_text_become_text(call: Any, script: Script) -> None:
    call({}, prompts=["p"] * 3, completions=["2", "3", "4"], answer=[2, None, ["a", 1]])
    samples = script.requests[0].samples
    assert [s.answer if s.HasField("answer") else None for s in samples] == ["2", None, '["a", 1]']


def test_everything_trl_passes_is_sorted_out(call: Any, script: Script) -> None:
    logged: dict[str, float] = {}
    call(
        {},
        prompts=PROMPTS,
        completions=COMPLETIONS,
        completion_ids=[[1], [2]],
        trainer_state=object(),
        environments=[object(), object()],
        log_extra=lambda column, values: None,
        log_metric=logged.__setitem__,
        gold=["2", "2"],
        tests=["[1]", None],
        rubric=["r", None],
        bonus=[1, 2],
        image=[object(), object()],
    )
    first, second = script.requests[0].samples
    assert first.prompt_messages.messages[0].content == "1+1="
    assert first.completion_messages.messages[0].role == "assistant"
    assert (first.tests_json, first.rubric) == ("[1]", "r")
    assert json.loads(first.metadata_json) == {"bonus": 1, "gold": "2"}
    assert json.loads(second.metadata_json) == {"bonus": 2, "gold": "2"}
    assert logged == {"s/no_reward": 0.0, "s/prompt_length": 0.0}


def test_a_named_answer_column_must_be_there(call: Any) -> None:
    options = {"answer_column": "gold"}
    assert call(options, prompts=["p"], completions=["2"], gold=["2"], answer=["5"]) == [1.0]
    with pytest.raises(ValueError, match=r"none of \['gold'\].*\['answer'\]"):
        call(options, prompts=["p"], completions=["2"], answer=["2"])


def test_a_column_of_the_wrong_length_is_never_broadcast(call: Any) -> None:
    with pytest.raises(ValueError, match="'answer' has 1 entries for 2 completions"):
        call({}, prompts=["p"] * 2, completions=["2", "3"], answer=["2"])


def test_trainers_see_a_name_and_a_coroutine_function_where_it_is_one(address: str) -> None:
    blocking = RewardClient(address).reward_function("s", name="correct")
    gathered = AsyncRewardClient(address).reward_function("s")
    assert (blocking.__name__, gathered.__name__) == ("correct", "s")
    assert not inspect.iscoroutinefunction(blocking.__call__)
    assert inspect.iscoroutinefunction(gathered.__call__)


def test_a_failing_service_raises_or_masks_as_asked() -> None:
    client = RewardClient(
        "127.0.0.1:1", timeout_s=10.0, retry=RetryPolicy(max_attempts=2, max_backoff_s=0.1)
    )
    with pytest.raises(ServiceUnavailable):
        client.reward_function("s")(["p"], ["c"])
    masking = client.reward_function("s", on_error=OnError.MASK)
    assert masking(["p"] * 2, ["c"] * 2) == [None, None]


def test_a_reward_function_outlives_the_client_that_made_it(address: str) -> None:
    with RewardClient(address, timeout_s=30.0) as client:
        function = client.reward_function("s")
    assert function(["p"], ["4"]) == [4.0]
    function.close()
