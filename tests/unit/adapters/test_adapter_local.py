"""Verifiers as TRL reward functions, called as TRL calls them."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rewardsvc.policy_client import AsyncRewardClient, OnError, RewardClient
from rewardsvc.policy_client.adapters.local import as_reward_function, text_of
from rewardsvc.policy_client.adapters.trl import trl_reward
from rewardsvc.verifiers import Countdown, ExactMatch, overlong_penalty

SAY_2 = [{"role": "assistant", "content": "2"}]
SAY_3 = [{"role": "assistant", "content": [{"type": "text", "text": "3"}]}]


def overlong(completion_ids: list[int]) -> float:
    return overlong_penalty(len(completion_ids), max_length=4, cache_length=2)


def fragile(completion: str) -> float:
    return 1.0 / len(completion)


def test_no_reward_is_none_and_no_zero() -> None:
    rewards = trl_reward(ExactMatch())(
        prompts=["p"] * 3, completions=["2", "3", "4"], completion_ids=[[1]] * 3,
        answer=["2", "2", None],
    )  # fmt: skip
    assert rewards == [1.0, 0.0, None]


def test_everything_trl_passes_is_sorted_out() -> None:
    logged: dict[str, float] = {}
    rewards = trl_reward(ExactMatch(), name="right")(
        prompts=[SAY_2, SAY_2],
        completions=[SAY_2, SAY_3],
        completion_ids=[[1], [2]],
        trainer_state=object(),
        log_extra=lambda column, values: None,
        log_metric=logged.__setitem__,
        environments=[object(), object()],
        solution=[2, None],
        image=[object(), object()],
    )
    assert rewards == [1.0, None]
    assert logged == {"right/no_reward": 0.5}


def test_parameters_are_columns_of_their_names() -> None:
    rewards = trl_reward(Countdown())(
        completions=["(3+5)*2", "3*5+2"], numbers=[np.array([2, 3, 5]), [2, 3, 5]], target=[16, 16]
    )
    assert rewards == [1.0, 0.0]


def test_a_function_of_ones_own_reads_token_ids() -> None:
    rewards = trl_reward(overlong)(completions=["", ""], completion_ids=[[1], [1, 1, 1]])
    assert rewards == [0.0, -0.5]


def test_names_that_differ_are_mapped() -> None:
    function = trl_reward(ExactMatch(), columns={"answer": "gold"})
    assert function(completions=["2"], gold=["2"], answer=["3"]) == [1.0]
    with pytest.raises(ValueError, match=r"needs a column 'gold'; the data set has \['answer'\]"):
        function(completions=["2"], answer=["2"])
    with pytest.raises(ValueError, match="no parameter 'gold'"):
        trl_reward(ExactMatch(), columns={"gold": "answer"})


def test_a_column_that_is_missing_or_too_short_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"exact_match needs a column 'answer'"):
        trl_reward(ExactMatch())(completions=["2"], numbers=[[1]])
    with pytest.raises(ValueError, match="'answer' has 1 entries for 2 completions"):
        trl_reward(ExactMatch())(completions=["2", "3"], answer=["2"])


def test_an_exception_raises_or_is_no_reward_as_asked(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError):
        trl_reward(fragile)(completions=["ab", ""])
    with caplog.at_level(logging.ERROR):
        masked = trl_reward(fragile, on_error=OnError.MASK)(completions=["ab", ""])
    assert masked == [0.5, None]
    assert "fragile raised" in caplog.text


@pytest.mark.parametrize("verifier", [ExactMatch(ignore_case=True), overlong])
def test_a_copy_in_another_process_is_the_same(verifier: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, overlong.__module__, inspect.getmodule(overlong) or _module())
    function = trl_reward(verifier, name="copied")
    copy = pickle.loads(pickle.dumps(function))
    call: dict[str, Any] = {"completions": ["A"], "completion_ids": [[1] * 3], "answer": ["a"]}
    assert copy.__name__ == "copied"
    assert copy(**call) == function(**call)


def _module() -> Any:
    from types import ModuleType

    module = ModuleType(overlong.__module__)
    module.overlong = overlong  # type: ignore[attr-defined]
    return module


def test_trl_sees_a_name_and_no_coroutine() -> None:
    from trl.trainer.utils import get_callable_name, is_async_callable

    function = trl_reward(ExactMatch())
    assert get_callable_name(function) == "exact_match"
    assert not is_async_callable(function)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        ([], ""),
        ([*SAY_2, *SAY_3], "2\n3"),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "tool_calls": []}], ""),
    ],
)
def test_messages_become_text(value: Any, text: str) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize("value", [3, None, [1, 2], [["a"]]])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="give"):
        text_of(value)


def test_sources_of_rewards_are_told_apart() -> None:
    remote = RewardClient("127.0.0.1:1").reward_function("s")
    local = trl_reward(ExactMatch())
    assert as_reward_function(remote) is remote
    assert as_reward_function(local) is local
    assert as_reward_function(ExactMatch()).__name__ == "exact_match"
    with pytest.raises(TypeError, match="does not judge"):
        as_reward_function("math")
    remote.close()


def test_an_asynchronous_function_is_refused_where_nobody_awaits_it() -> None:
    async def check() -> None:
        function = AsyncRewardClient("127.0.0.1:1").reward_function("s")
        with pytest.raises(TypeError, match="asynchronous"):
            as_reward_function(function)
        await function.close()

    asyncio.run(check())


def test_importing_the_adapters_imports_no_trainer_and_no_torch() -> None:
    script = (
        "import sys\n"
        "from rewardsvc.policy_client.adapters import openrlhf, prime_intellect, trl, verl\n"
        "heavy = {'torch', 'trl', 'transformers', 'verifiers', 'pydantic', 'regex', 'jsonschema'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
