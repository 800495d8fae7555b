"""`python`: whatever a user's function does, each sample gets a clear answer."""

from __future__ import annotations

import asyncio
import textwrap
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from rewardsvc.errors import ConfigError, ItemErrorCode
from rewardsvc.scorers import scorer_class
from rewardsvc.scorers._user_code import score_of_result
from rewardsvc.scoring import Sample, Score, Scorer
from rewardsvc.scoring.build import BuildEnv

REWARDS = """
import asyncio
import sys
import threading

import numpy as np

from rewardsvc.scoring import Score, Verdict

release = threading.Event()
now = 3
RESULTS = {
    "float": 0.5, "int": 2, "bool": True, "numpy": np.float32(0.25), "array": np.array(0.75),
    "dict": {"score": 1, "acc": 0.5, "pred": "x", "explanation": "so"},
    "score": Score(value=3.0, verdict=Verdict.ACCEPTED),
    "none": None, "nan": float("nan"), "inf": float("inf"), "text": "0.5", "list": [1.0],
    "empty": {}, "dict_nan": {"score": float("nan")}, "dict_none": {"score": None},
    "many": np.array([1.0, 2.0]),
}

def look_up(sample):
    if sample.completion == "raise":
        raise KeyError("no such thing")
    if sample.completion == "exit":
        sys.exit(0)
    if sample.completion == "stop":
        raise StopIteration
    if sample.completion == "time":
        raise TimeoutError("mine")
    if sample.completion == "hang":
        release.wait(600)
    return RESULTS.get(sample.completion, 0.0)

async def look_up_async(sample):
    if sample.completion == "hang":
        await asyncio.sleep(600)
    await asyncio.sleep(0)
    return look_up(sample)

class Callable:
    async def __call__(self, sample):
        return 4.0

instance = Callable()

def lengths(samples, scale=1.0):
    return [scale * len(sample.completion) for sample in samples]

def lengths_array(samples):
    return np.array(lengths(samples), np.float32)

def one_short(samples):
    return lengths(samples)[1:]

def one_number(samples):
    return 1.0

def mixed(samples):
    return [None, float("nan"), 1.0]

def broken(samples):
    raise ValueError("no")
"""

FUNCTIONS = ["look_up", "look_up_async"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(textwrap.dedent(REWARDS))
    return tmp_path


def build(folder: Path, function: str, **config: Any) -> Scorer:
    cls = scorer_class("python")
    env = BuildEnv(name="mine", base_dir=folder, child=cast("Any", None), engine=cast("Any", None))
    return cls(cls.Config(type="python", function=function, **config), env)


def run(scorer: Scorer, *completions: str) -> list[Score]:
    async def start_and_score() -> list[Score]:
        await scorer.start()
        scores = await scorer.score([Sample(completion=text) for text in completions])
        await scorer.close()
        return scores

    return asyncio.run(start_and_score())


def release(scorer: Scorer) -> None:
    """Lets the functions go on that hang."""
    scorer._function.func.__globals__["release"].set()  # type: ignore[attr-defined]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_numbers_dicts_and_scores_are_rewards(folder: Path, function: str) -> None:
    names = ["float", "int", "bool", "numpy", "array", "dict", "score"]
    scores = run(build(folder, f"rewards.py:{function}"), *names)
    assert [s.value for s in scores] == [0.5, 2.0, 1.0, 0.25, 0.75, 1.0, 3.0]
    assert scores[5].components == {"acc": 0.5}
    assert scores[5].explanation == "so"
    assert scores[6].verdict is not None


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("none", ItemErrorCode.SCORER_EXCEPTION, "None"),
        ("nan", ItemErrorCode.NON_FINITE, "nan"),
        ("inf", ItemErrorCode.NON_FINITE, "inf"),
        ("text", ItemErrorCode.SCORER_EXCEPTION, "'0.5', not a number"),
        ("list", ItemErrorCode.SCORER_EXCEPTION, "a list, not a number"),
        ("many", ItemErrorCode.SCORER_EXCEPTION, "a ndarray, not a number"),
        ("empty", ItemErrorCode.SCORER_EXCEPTION, "without 'score'"),
        ("dict_nan", ItemErrorCode.NON_FINITE, "nan"),
        ("dict_none", ItemErrorCode.SCORER_EXCEPTION, "None"),
        ("raise", ItemErrorCode.SCORER_EXCEPTION, "KeyError: 'no such thing'"),
        ("exit", ItemErrorCode.SCORER_EXCEPTION, "SystemExit"),
        ("time", ItemErrorCode.SCORER_EXCEPTION, "TimeoutError: mine"),
    ],
)
def test_anything_else_is_the_error_of_that_sample_alone(
    folder: Path, function: str, name: str, code: ItemErrorCode, said: str
) -> None:
    before, bad, after = run(build(folder, f"rewards.py:{function}"), "float", name, "int")
    assert (before.value, after.value) == (0.5, 2.0)
    assert bad.error is not None
    assert bad.error.code is code
    assert said in bad.error.message


def test_stop_iteration_is_an_error_like_any_other(folder: Path) -> None:
    [score] = run(build(folder, "rewards.py:look_up"), "stop")
    assert score.error is not None
    assert "StopIteration" in score.error.message


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_hangs_times_out_and_its_neighbours_are_scored(
    folder: Path, function: str
) -> None:
    scorer = build(folder, f"rewards.py:{function}", timeout_s=2, concurrency=2)
    hung, fine = run(scorer, "hang", "float")
    release(scorer)
    assert fine.value == 0.5
    assert hung.error is not None
    assert hung.error.code is ItemErrorCode.VERIFIER_TIMEOUT
    assert "timeout_s = 2" in hung.error.message


def test_functions_that_never_return_are_bounded_in_number(folder: Path) -> None:
    scorer = build(folder, "rewards.py:look_up", timeout_s=0.2, concurrency=2)
    scores = run(scorer, *["hang"] * 6)
    assert {s.error.code for s in scores if s.error} == {ItemErrorCode.VERIFIER_TIMEOUT}
    assert all(s.error is not None for s in scores)
    assert sum(t.name == "python-mine" for t in threading.enumerate()) <= 4
    assert any(s.error is not None and "never returned" in s.error.message for s in scores)
    release(scorer)


def test_an_object_with_an_async_call_is_awaited(folder: Path) -> None:
    [score] = run(build(folder, "rewards.py:instance"), "x")
    assert score.value == 4.0


@pytest.mark.parametrize("function", ["lengths", "lengths_array"])
def test_a_batched_function_gets_all_samples_at_once(folder: Path, function: str) -> None:
    scores = run(build(folder, f"rewards.py:{function}", batched=True), "a", "bbb", "")
    assert [s.value for s in scores] == [1.0, 3.0, 0.0]
    assert run(build(folder, f"rewards.py:{function}", batched=True)) == []


def test_keyword_arguments_of_the_configuration_are_passed(folder: Path) -> None:
    scorer = build(folder, "rewards.py:lengths", batched=True, kwargs={"scale": 0.5})
    assert [s.value for s in run(scorer, "aaaa")] == [2.0]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("one_short", "2 results for 3 samples"),
        ("one_number", "1.0, not a list of 3"),
        ("broken", "ValueError: no"),
    ],
)
def test_a_malformed_batch_is_the_error_of_each_sample(
    folder: Path, function: str, said: str
) -> None:
    scores = run(build(folder, f"rewards.py:{function}", batched=True), "a", "b", "c")
    for score in scores:
        assert score.error is not None
        assert score.error.code is ItemErrorCode.SCORER_EXCEPTION
        assert said in score.error.message


def test_entries_of_a_batch_fail_one_by_one(folder: Path) -> None:
    scores = run(build(folder, "rewards.py:mixed", batched=True), "a", "b", "c")
    assert [s.value for s in scores] == [None, None, 1.0]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("rewards.py:lenghts", "it has .*lengths"),
        ("rewards.py:now", "is a int, not a function"),
        ("reward.py:lengths", r"no file .*\['rewards.py'\]"),
        ("no_such_package.rewards:f", "no module 'no_such_package'"),
        ("rewards.py", "module:function"),
        (":f", "module:function"),
        ("rewards.py:", "module:function"),
        ("bad.py:f", "SyntaxError"),
        ("needy.py:f", "no_such_dependency"),
        ("leaving.py:f", "SystemExit"),
    ],
)
def test_a_function_that_is_not_there_is_a_configuration_error(
    folder: Path, function: str, said: str
) -> None:
    (folder / "bad.py").write_text("def f(:")
    (folder / "needy.py").write_text("import no_such_dependency")
    (folder / "leaving.py").write_text("raise SystemExit(3)")
    if function.startswith("reward.py"):
        for name in ("bad.py", "needy.py", "leaving.py"):
            (folder / name).unlink()
    with pytest.raises(ConfigError, match=said) as caught:
        run(build(folder, function), "a")
    assert str(caught.value).startswith("scorers.mine.function: ")


def test_an_importable_module_is_found() -> None:
    [score] = run(build(Path(), "operator:truth"), "a")
    assert score.value == 1.0


def test_a_reload_sees_the_changed_file(folder: Path) -> None:
    file = folder / "changing.py"
    file.write_text("def f(sample): return 1.0")
    scorer = build(folder, "changing.py:f")
    assert run(scorer, "a")[0].value == 1.0
    file.write_text("def f(sample): return 22.0")
    changed = build(folder, "changing.py:f")
    assert run(changed, "a")[0].value == 22.0
    assert changed.version != scorer.version


def test_the_section_runs_code_of_the_operators_choice(folder: Path) -> None:
    config = scorer_class("python").Config(type="python", function="a:b")  # type: ignore[call-arg]
    assert config.runs_code_of_the_config()


def test_torch_scalars_are_numbers() -> None:
    torch = pytest.importorskip("torch")
    assert score_of_result(torch.tensor(0.5)).value == 0.5
    assert score_of_result(torch.tensor([1.0, 2.0])).value is None
