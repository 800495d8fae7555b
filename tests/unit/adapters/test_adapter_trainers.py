"""The forms of verl, OpenRLHF and Prime Intellect, and what each does about a missing reward."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_reward_service import Script, start

from rewardsvc.policy_client import RewardClient, RewardFunction
from rewardsvc.policy_client.adapters.missing import NoRewardError
from rewardsvc.policy_client.adapters.openrlhf import openrlhf_reward
from rewardsvc.policy_client.adapters.prime_intellect import rubric_function
from rewardsvc.policy_client.adapters.verl import verl_compute_score, verl_compute_score_batch
from rewardsvc.verifiers import Countdown, ExactMatch, MultipleChoice


@pytest.fixture
def remote(script: Script) -> Iterator[RewardFunction]:
    server, port = start(script)
    function = RewardClient(f"127.0.0.1:{port}", timeout_s=30.0).reward_function("s")
    yield function
    function.close()
    server.stop(0).wait()


def told(prompt: str, completion: str, hint: str = "none") -> float:
    return float(prompt + hint == completion)


def test_verl_scores_one_sample() -> None:
    score = verl_compute_score(ExactMatch())
    assert score("gsm8k", "2", "2", {"split": "train"}) == 1.0
    call = {"data_source": "x", "solution_str": "3", "ground_truth": "2", "extra_info": None}
    assert score(**call, reward_router_address="unused") == 0.0
    assert not inspect.iscoroutinefunction(score)


def test_verl_reads_columns_of_ground_truth_and_extra_info() -> None:
    assert verl_compute_score(Countdown())("c", "3*5", {"numbers": [3, 5], "target": 15}) == 1.0
    extra = {"question": "q", "hint": "h", "prompts": "ignored"}
    assert verl_compute_score(told)("c", "qh", None, extra) == 1.0


def test_verl_scores_a_batch_in_one_call(remote: RewardFunction) -> None:
    score = verl_compute_score_batch(remote, on_missing="nan")
    values = score(
        data_sources=["x"] * 3,
        solution_strs=["2", "3", "bad"],
        ground_truths=["2", "2", "2"],
        extra_infos=[{}, {"a": 1}, None],
    )
    assert values[:2] == [1.0, 0.0]
    assert math.isnan(values[2])


def test_verl_raises_nan_or_a_number_as_asked() -> None:
    with pytest.raises(NoRewardError, match="multiple_choice: no reward: answer is 'E'"):
        verl_compute_score(MultipleChoice())("x", "A", "E")
    assert math.isnan(verl_compute_score(MultipleChoice(), on_missing="nan")("x", "A", "E"))
    assert verl_compute_score(MultipleChoice(), on_missing=-1)("x", "A", "E") == -1.0


def test_a_service_without_a_reward_is_no_zero_either(remote: RewardFunction) -> None:
    assert verl_compute_score(remote)("x", "worthless", None, {"bonus": 0}) == 0.0
    with pytest.raises(NoRewardError, match="s: no reward"):
        verl_compute_score(remote)("x", "bad", None)


@pytest.mark.parametrize("on_missing", ["zero", math.nan, math.inf, None])
def test_a_malformed_on_missing_is_refused(on_missing: Any) -> None:
    with pytest.raises(ValueError, match="on_missing is"):
        verl_compute_score(ExactMatch(), on_missing=on_missing)


def test_openrlhf_gets_tensors_of_the_responses() -> None:
    result = openrlhf_reward(ExactMatch())(
        queries=["<s>1+1=2<|im_end|>\n", "1+1=3</s></s>"], prompts=["1+1=", "1+1="],
        labels=["2", "2"], unknown=1,
    )  # fmt: skip
    assert result["rewards"].dtype == torch.float32
    assert result["rewards"].tolist() == result["scores"].tolist() == [1.0, 0.0]
    assert result["extra_logs"]["exact_match"].tolist() == [1.0, 0.0]


def test_openrlhf_does_not_guess_where_a_response_begins() -> None:
    with pytest.raises(ValueError, match="does not contain its prompt"):
        openrlhf_reward(ExactMatch())(["=2"], ["1+1="], ["2"])
    with pytest.raises(ValueError, match="end_tokens"):
        openrlhf_reward(ExactMatch(), end_tokens=["</s>", ""])


def test_openrlhf_raises_or_fills_as_asked() -> None:
    call = (["pA"], ["p"], ["E"])
    with pytest.raises(NoRewardError):
        openrlhf_reward(MultipleChoice())(*call)
    filled = openrlhf_reward(MultipleChoice(), on_missing="nan")(*call)
    assert filled["rewards"].isnan().tolist() == [True]


class Rubric:
    """Calls a function as Prime Intellect's rubric does: arguments by name, failures as 0.0."""

    def __init__(self, **objects: Any) -> None:
        self.objects = {"parser": object(), "task": None, "state": {"turn": 1}, **objects}

    def __call__(self, function: Any) -> float:
        assert function.__name__
        parameters = inspect.signature(function).parameters
        plural = {"states", "prompts", "completions", "answers", "tasks", "infos"}
        assert not plural & set(parameters), "it would be taken for a group function"
        assert any(p.kind is p.VAR_KEYWORD for p in parameters.values())

        async def call() -> float:
            try:
                result = function(**self.objects)
                return float(await result if inspect.isawaitable(result) else result)
            except Exception:
                return 0.0

        return asyncio.run(call())


CHAT = [{"role": "assistant", "content": "2"}]


def test_a_rubric_calls_with_arguments_by_name() -> None:
    rubric = Rubric(prompt=[{"role": "user", "content": "1+1="}], completion=CHAT, answer="2")
    assert rubric(rubric_function(ExactMatch(), name="right")) == 1.0
    hinted = Rubric(prompt="q", completion="qh", answer="", info={"hint": "h"})
    assert hinted(rubric_function(told)) == 1.0
    assert Rubric(prompt="q", completion="qg", hint="g")(rubric_function(told)) == 1.0


def turn_of(state: dict[str, int]) -> float:
    return state["turn"]


def test_the_rubrics_state_is_for_functions_here_and_not_for_a_service(
    remote: RewardFunction, script: Script
) -> None:
    assert Rubric(completion="2")(rubric_function(turn_of)) == 1.0
    assert Rubric(completion="2", answer="2", split="a")(rubric_function(remote)) == 1.0
    assert json.loads(script.requests[0].samples[0].metadata_json) == {"split": "a"}


def test_in_a_rubric_nothing_that_goes_wrong_becomes_zero(
    remote: RewardFunction, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Rubric(prompt="", completion="A", answer="E")
    assert math.isnan(missing(rubric_function(MultipleChoice())))
    assert missing(rubric_function(MultipleChoice(), on_missing=-0.5)) == -0.5
    assert math.isnan(Rubric(prompt="", completion="bad", answer=None)(rubric_function(remote)))
    remote.close()
    with caplog.at_level(logging.ERROR):
        assert math.isnan(Rubric(completion="2", answer=None)(rubric_function(remote)))
    assert "s failed" in caplog.text


def test_raising_in_a_rubric_is_refused_because_it_means_zero() -> None:
    with pytest.raises(ValueError, match="turns into 0.0"):
        rubric_function(ExactMatch(), on_missing="raise")  # type: ignore[arg-type]
