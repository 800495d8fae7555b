"""Two processes come to what one comes to: every loop, every way of weighing tokens, DDP and FSDP2.

The processes run once for all tests of this module.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_processes import FSDP, OFFLINE, ONLINE, jobs, run_in_two, train, write_data

from rewardsvc.policy_client.train.run_log import read_run

pytestmark = pytest.mark.timeout(400)  # one test waits for all that the processes do

CLOSE = 2e-6
"""Largest difference of a weight, relative to the largest weight of its tensor: sums in another
order differ by a few roundings of float32, 1.2e-7 each."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have done all of the jobs, one folder each."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two(folder, list(jobs()))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Does a run in this process, once."""
    folder = tmp_path_factory.mktemp("one")
    write_data(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(name: str) -> Path:
        target = folder / name
        if not target.exists():
            train(name, target)
        return target

    yield run
    torch.set_num_threads(threads)


def check_done(run: Path) -> None:
    errors = sorted(run.glob("error-*.txt"))
    assert not errors, errors[0].read_text()


def distance(found: Path, wanted: Path) -> float:
    """Largest difference of two final models' weights, relative to each tensor's largest."""
    mine, theirs = (load_file(run / "final" / "model.safetensors") for run in (found, wanted))
    assert mine.keys() == theirs.keys()
    return max(float((mine[n] - theirs[n]).abs().max() / theirs[n].abs().max()) for n in mine)


def metrics(run: Path) -> dict[str, tuple[float, ...]]:
    """Series of what a run logged, but for times, and for shares of rewards above others: those of
    a policy that is its own reference still are ties, which rounding decides.
    """
    found = read_run(run).metrics
    vague = ("_time", "_s", "rewards/accuracies")
    return {name: series for name, series in found.items() if not name.endswith(vague)}


def assert_like(found: Path, wanted: Path) -> None:
    """Weights and metrics are the same but for rounding."""
    check_done(found)
    assert distance(found, wanted) < CLOSE
    mine, theirs = metrics(found), metrics(wanted)
    assert mine.keys() == theirs.keys()
    for name, series in theirs.items():
        assert mine[name] == pytest.approx(series, rel=1e-4, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("name", [*ONLINE, *OFFLINE])
def test_two_processes_come_to_what_one_comes_to(two: Path, one: Any, name: str):
    assert_like(two / f"ddp {name}", one(name))


@pytest.mark.parametrize("name", FSDP)
def test_divided_weights_come_to_what_whole_ones_come_to(two: Path, one: Any, name: str):
    assert_like(two / f"fsdp {name}", one(name))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_interrupted_and_resumed_equals_uninterrupted_in_two_processes(two: Path, kind: str):
    run, whole = two / f"{kind} interrupted", two / f"{kind} grpo"
    check_done(run)
    assert "in the middle of the next" in (run / "preempted").read_text()
    mine, theirs = (load_file(one / "final" / "model.safetensors") for one in (run, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert metrics(run) == metrics(whole)


def test_each_step_is_logged_once(two: Path):
    lines = (two / "ddp grpo" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_failure_in_one_process_ends_all_with_its_reason(two: Path):
    check_done(two / "failing")
    first, last = (json.loads((two / "failing" / f"process-{r}.json").read_text()) for r in (0, 1))
    assert first[0].startswith("OutageError: process 1: ")
    assert last[0].startswith("OutageError: ")
    assert first[1] == "PeerFailedError: process 1 failed: ZeroDivisionError: a bug"
    assert last[1] == "ZeroDivisionError: a bug"


def test_one_process_goes_on_from_a_checkpoint_of_two(two: Path, tmp_path: Path):
    train("grpo", tmp_path / "run", resume=two / "ddp grpo" / "checkpoint-00000002", max_steps=3)
    assert read_run(tmp_path / "run").steps == (3,)
