"""Reward sources: no reward is never a zero reward, and no reward goes to the wrong completion."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client import Cancelled, InvalidRequest, ServiceUnavailable
from rewardsvc.policy_client.train.data import Example
from rewardsvc.policy_client.train.online.config import (
    PythonRewardConfig,
    ServiceRewardConfig,
    VerifierRewardConfig,
)
from rewardsvc.policy_client.train.online.outage import OutageError, Patience, UnavailableError
from rewardsvc.policy_client.train.online.reward_desk import (
    MissingRewardsError,
    MissingRewardWatch,
    RewardDesk,
    collect,
)
from rewardsvc.policy_client.train.online.rewards import (
    CallableReward,
    MalformedRewardsError,
    RewardRequest,
    Rewards,
    ServiceReward,
)
from rewardsvc.policy_client.train.online.sources import build_reward_source


def request_of(*completions: str, **columns: Any) -> RewardRequest:
    """Completions of the prompt "p", whose row has the given columns."""
    fields = {name: columns.pop(name) for name in ("prompt", "answer") if name in columns}
    example = Example(**{"prompt": "p"} | fields, metadata=columns)
    return RewardRequest(
        examples=[example] * len(completions),
        completions=completions,
        completion_ids=[[len(text)] for text in completions],
    )


def values_of(rewards: Rewards) -> list[float | None]:
    assert rewards.values.dtype == np.float32
    return [None if math.isnan(value) else value for value in rewards.values.tolist()]


def test_a_function_gets_the_columns_of_the_data() -> None:
    seen: dict[str, Any] = {}

    def reward(**columns: Any) -> list[float]:
        seen.update(columns)
        return [1.0, 2.0]

    CallableReward(reward).score(request_of("a", "bc", answer="x", level=3))
    assert seen == {
        "prompts": ["p", "p"],
        "completions": ["a", "bc"],
        "completion_ids": [[1], [2]],
        "answer": ["x", "x"],
        "level": [3, 3],
    }


def test_a_function_without_keywords_gets_what_it_names() -> None:
    def reward(completions: list[str], answer: list[str]) -> list[float]:
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    assert values_of(CallableReward(reward).score(request_of("x", "y", answer="x"))) == [1.0, 0.0]


def test_conversations_get_messages_as_completions() -> None:
    def reward(completions: list[Any], **_: Any) -> list[float]:
        assert completions == [[{"role": "assistant", "content": "hi"}]]
        return [1.0]

    CallableReward(reward).score(request_of("hi", prompt=[{"role": "user", "content": "?"}]))


def test_functions_add_up_where_they_apply_and_nothing_applies_is_no_reward() -> None:
    def first(**_: Any) -> list[float | None]:
        return [1.0, None, None, math.nan]

    def second(**_: Any) -> list[float | None]:
        return [10.0, 10.0, None, math.inf]

    source = CallableReward(first, second, weights=[1.0, 0.5])
    rewards = source.score(request_of("a", "b", "c", "d"))
    assert values_of(rewards) == [6.0, 5.0, None, None]
    assert set(rewards.components) == {"first", "second"}
    assert np.isnan(rewards.components["second"][2:]).all()


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 3.0], [], [[1.0, 2.0]]])
def test_a_list_of_the_wrong_length_is_refused(values: Any) -> None:
    def reward(**_: Any) -> Any:
        return values

    with pytest.raises((MalformedRewardsError, TypeError)):
        CallableReward(reward).score(request_of("a", "b"))


def test_an_exception_of_a_function_is_not_swallowed() -> None:
    def reward(**_: Any) -> list[float]:
        raise KeyError("typo")

    with pytest.raises(KeyError, match="typo"):
        CallableReward(reward).score(request_of("a"))


@pytest.mark.parametrize(("functions", "weights"), [((), None), ((len,), [1.0, 2.0])])
def test_functions_and_weights_must_fit(functions: Any, weights: Any) -> None:
    with pytest.raises(ValueError, match="functions|weights"):
        CallableReward(*functions, weights=weights)


class Client:
    """A client that scores by length, or raises what it is told to."""

    def __init__(self, error: Exception | None = None, num: int | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self._error = error
        self._num = num

    def score(
        self, scorer: str, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> Any:
        self.calls.append({"scorer": scorer, "prompts": prompts, **columns})
        if self._error is not None:
            raise self._error
        values = np.array([len(text) or math.nan for text in completions][: self._num], np.float32)
        return SimpleNamespace(values=values, components={"length": values})


def test_a_service_gets_answers_tests_rubrics_and_metadata() -> None:
    client = Client()
    request = request_of("ab", "", answer="7", tests=[1], rubric="be kind", level=3)
    rewards = ServiceReward(client, "rlvr").score(request)
    assert values_of(rewards) == [2.0, None]
    assert client.calls == [
        {
            "scorer": "rlvr",
            "prompts": ["p", "p"],
            "answers": ["7", "7"],
            "tests": [[1], [1]],
            "rubrics": ["be kind", "be kind"],
            "metadata": [
                {"level": 3, "completion_length": 1},
                {"level": 3, "completion_length": 1},
            ],
        }
    ]


def test_a_service_without_columns_gets_none_but_the_length_in_tokens() -> None:
    client = Client()
    ServiceReward(client, "rlvr").score(request_of("ab"))
    metadata = [{"completion_length": 1}]
    assert client.calls == [
        {"scorer": "rlvr", "prompts": ["p"], "answers": [None], "metadata": metadata}
    ]


def test_a_service_with_too_few_values_is_refused() -> None:
    with pytest.raises(MalformedRewardsError, match="'rlvr'"):
        ServiceReward(Client(num=1), "rlvr").score(request_of("a", "b"))


def test_only_an_outage_is_waited_for() -> None:
    with pytest.raises(UnavailableError):
        ServiceReward(Client(ServiceUnavailable("down")), "s").score(request_of("a"))
    with pytest.raises(InvalidRequest):
        ServiceReward(Client(InvalidRequest("bad")), "s").score(request_of("a"))


def test_a_countdown_verifier_reads_numbers_and_target() -> None:
    source = build_reward_source(VerifierRewardConfig(name="countdown"), ExitStack())
    right = source.score(request_of("(3+5)*2", "3+5", numbers=[2, 3, 5], target=16))
    assert values_of(right) == [1.0, 0.0]
    assert values_of(source.score(request_of("3+5", numbers=[3, 5]))) == [None]


def test_an_exact_verifier_without_an_answer_gives_no_reward() -> None:
    source = build_reward_source(VerifierRewardConfig(name="exact"), ExitStack())
    assert values_of(source.score(request_of("7", answer="7"))) == [1.0]
    assert values_of(source.score(request_of("7"))) == [None]


def test_a_python_function_is_found_by_name() -> None:
    config = PythonRewardConfig(function="tiny_policies:digit_reward")
    rewards = build_reward_source(config, ExitStack()).score(request_of("7", prompt="7="))
    assert values_of(rewards) == [1.0]


@pytest.mark.parametrize(
    "name", ["tiny_policies", "tiny_policies:nothing", "no_such_module:f", "tiny_policies:ROWS"]
)
def test_a_function_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"reward\.function"):
        build_reward_source(PythonRewardConfig(function=name), ExitStack())


class Flaky:
    """A source that is away for the first calls."""

    def __init__(self, num_away: int) -> None:
        self.num_calls = 0
        self._num_away = num_away

    def score(self, request: RewardRequest) -> Rewards:
        self.num_calls += 1
        if self.num_calls <= self._num_away:
            raise UnavailableError("away")
        return Rewards(values=np.ones(len(request), np.float32))


def test_an_outage_is_waited_out() -> None:
    source, patience = Flaky(3), Patience(60, first_delay_s=0.01)
    desk = RewardDesk(source, patience, num_threads=1)
    assert values_of(desk.submit(request_of("a")).result(timeout=30)) == [1.0]
    assert source.num_calls == 4
    assert patience.take_waited_s() > 0
    assert patience.take_waited_s() == 0
    desk.close()


def test_an_outage_that_is_too_long_ends_with_the_reason() -> None:
    patience = Patience(0.05, first_delay_s=0.01)
    with pytest.raises(OutageError, match=r"the judge.*max_service_outage_s is 0\.05: away"):
        patience.call(lambda: Flaky(10**9).score(request_of("a")), "the judge")


def test_closing_the_desk_ends_waits() -> None:
    desk = RewardDesk(Flaky(10**9), Patience(3600, first_delay_s=1800), num_threads=1)
    future = desk.submit(request_of("a"))
    closer = threading.Timer(0.05, desk.close)
    closer.start()
    with pytest.raises(OutageError):
        future.result(timeout=30)
    closer.join()


def test_collected_rewards_keep_the_order_and_fill_components_with_nan() -> None:
    def name_by_prompt(**columns: Any) -> list[float]:
        return [float(len(text)) for text in columns["completions"]]

    def other(**columns: Any) -> list[float]:
        return [0.0 for _ in columns["completions"]]

    desks = [
        RewardDesk(CallableReward(function), Patience(0), num_threads=2)
        for function in (name_by_prompt, other)
    ]
    futures = [desks[0].submit(request_of("a", "bb")), desks[1].submit(request_of("ccc"))]
    rewards = collect(futures)
    assert values_of(rewards) == [1.0, 2.0, 0.0]
    np.testing.assert_array_equal(rewards.components["other"], [math.nan, math.nan, 0.0])
    for desk in desks:
        desk.close()


def test_a_window_of_missing_rewards_stops_the_run_and_is_saved() -> None:
    watch = MissingRewardWatch(0.5, 2)
    watch.record(10, 10)
    resumed = MissingRewardWatch(0.5, 2)
    resumed.load_state_dict(watch.state_dict())
    resumed.record(0, 10)
    with pytest.raises(MissingRewardsError, match="11 of 20 completions of the last 2 steps"):
        for num_missing in (1, 10):
            resumed.record(num_missing, 10)


def test_a_limit_of_one_never_stops() -> None:
    watch = MissingRewardWatch(1.0, 1)
    for _ in range(5):
        watch.record(10, 10)


def test_a_component_is_found_by_its_own_name_or_nested() -> None:
    ones, twos = np.ones(2, np.float32), np.full(2, 2, np.float32)
    rewards = Rewards(values=ones, components={"outer/true_quality": twos, "quality": ones})
    assert rewards.component("true_quality") is twos
    assert rewards.component("quality") is ones
    assert np.isnan(rewards.component("nothing")).all()


def test_a_client_that_was_built_is_closed_with_the_run() -> None:
    with ExitStack() as clients:
        source = build_reward_source(ServiceRewardConfig(scorer="s"), clients)
        client = source._client  # type: ignore[attr-defined]
    with pytest.raises(Cancelled):
        client.score("s", ["p"], ["c"])
