"""Worker processes with light scorers: dispatch, death, return, reload, end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewardsvc.engine.host import EngineHost, EngineSettings
from rewardsvc.errors import (
    ConfigError,
    DeadlinePassedError,
    ItemErrorCode,
    NotServingError,
    ScorerUnusableError,
)
from rewardsvc.scoring import Sample
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.context import CallContext, call_context
from rewardsvc.scoring.registry import Registry
from rewardsvc.scoring.slot import State
from rewardsvc.workers.pool import WorkerPool

FUNCTIONS = '''
"""Scorers that tell which process they run in, and obey."""
import asyncio, os
VERSION = 1

async def pid(sample):
    word, _, argument = sample.completion_text.partition(":")
    if word == "sleep":
        await asyncio.sleep(float(argument))
    if word == "die":
        os._exit(3)
    return float(os.getpid())
'''


class Replicated(ScorerConfigBase):
    """A user's function in worker processes: what a model is, without a model."""

    type: str = "python"
    function: str = "functions.py:pid"
    replicas: int = 2

    def worker_devices(self) -> tuple[str, ...]:
        return ("cpu",) * self.replicas

    def on_worker(self, device: str) -> dict[str, Any]:
        return {"type": "python", "function": self.function}


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Any]:
    """A registry with a pool of workers, as `registry.pool`."""
    (tmp_path / "functions.py").write_text(FUNCTIONS, encoding="utf-8")
    others = psutil.Process().children(recursive=True)  # pools of verifiers, from other tests
    engine = EngineSettings(device="cpu", drain_s=2)
    pool = WorkerPool(engine, tmp_path, log_level="error")
    host = EngineHost(engine)
    registry: Any = Registry(host, tmp_path, remote=pool.scorer)
    registry.pool = pool
    yield registry
    await registry.close()
    await pool.close()
    await host.close()
    left = set(psutil.Process().children(recursive=True)).difference(others)
    assert not left, "a worker is left behind"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def samples(*completions: str) -> list[Sample]:
    return [Sample(prompt=f"prompt {i}", completion=text) for i, text in enumerate(completions)]


async def pids(registry: Any, *completions: str) -> list[int]:
    scores = await registry.get("model").score(samples(*completions))
    assert all(score.ok for score in scores), scores
    return [int(score.value) for score in scores]


async def test_work_is_divided_and_comes_back_in_order(registry: Any) -> None:
    await registry.load("model", {"model": Replicated()})
    workers = registry.pool.workers
    assert [worker.name for worker in workers] == ["cpu/0", "cpu/1"]
    found = await pids(registry, *map(str, range(64)))
    assert set(found) == {worker.pid for worker in workers} - {os.getpid()}
    again = await pids(registry, *map(str, range(64)))
    assert again == found, "a prompt goes to the worker that it went to before"

    scores = await registry.get("model").score(samples("ok", "\ud800", "ok"))
    assert [score.ok for score in scores] == [True, False, True]
    assert scores[1].error.code is ItemErrorCode.INVALID_SAMPLE


async def test_deadlines_and_cancellation_reach_the_workers(registry: Any) -> None:
    await registry.load("model", {"model": Replicated(replicas=1)})
    (worker,) = registry.pool.workers
    with (
        call_context(CallContext(deadline=time.monotonic() + 0.3)),
        pytest.raises(DeadlinePassedError),
    ):
        await pids(registry, "sleep:30")
    gone = asyncio.create_task(pids(registry, "sleep:30"))
    await until(lambda: worker.outstanding)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await until(lambda: not worker.outstanding)
    text = ""
    while "rewardsvc_calls" not in text or "sleeping" in text:
        text = await worker.metrics_text(5.0) + "rewardsvc_calls"
    assert await pids(registry, "x") == [worker.pid]


async def test_calls_of_a_killed_worker_are_answered_by_another(registry: Any) -> None:
    await registry.load("model", {"model": Replicated()})
    first, second = registry.pool.workers
    dead = first.pid
    call = asyncio.create_task(pids(registry, *["sleep:0.5"] * 16))
    await until(lambda: first.outstanding and second.outstanding)
    os.kill(dead, signal.SIGKILL)
    assert set(await call) == {second.pid}
    assert registry.get("model").info.state is State.READY
    await until(lambda: first.num_starts == 2 and first.is_up)
    assert first.pid != dead
    assert set(await pids(registry, *map(str, range(64)))) == {first.pid, second.pid}
    assert registry.get("model").info.message == ""


async def test_sample_that_kills_its_worker_is_tried_twice_and_not_for_ever(registry: Any) -> None:
    await registry.load("model", {"model": Replicated(replicas=3)})
    processes = [worker.pid for worker in registry.pool.workers]
    with pytest.raises(NotServingError, match="2 workers were lost"):
        await asyncio.wait_for(pids(registry, "die"), 60)
    await until(lambda: sum(map(psutil.pid_exists, processes)) == 1)
    (alive,) = filter(psutil.pid_exists, processes)
    assert await pids(registry, "x") == [alive]


async def test_with_no_worker_left_calls_are_refused_until_one_is_back(registry: Any) -> None:
    await registry.load("model", {"model": Replicated(replicas=1)})
    (worker,) = registry.pool.workers
    os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: not worker.is_up)
    info = registry.get("model").info
    assert (info.state, info.message) == (State.LOADING, "0 of 1 workers serve")
    with pytest.raises(NotServingError, match="0 of 1 workers serve"):
        await pids(registry, "x")
    await until(lambda: worker.is_up)
    assert await pids(registry, "x") == [worker.pid]
    assert registry.get("model").info.state is State.READY


async def test_reload_under_load_fails_no_call_and_reuses_the_processes(registry: Any) -> None:
    await registry.load("model", {"model": Replicated()})
    processes = {worker.pid for worker in registry.pool.workers}
    stop = False

    async def keep_asking() -> int:
        num_calls = 0
        while not stop:
            assert set(await pids(registry, *map(str, range(16)))) <= processes
            num_calls += 1
        return num_calls

    asking = [asyncio.create_task(keep_asking()) for _ in range(8)]
    for _ in range(3):
        await registry.reload("model")
    stop = True
    assert min(await asyncio.gather(*asking)) > 0
    assert {worker.pid for worker in registry.pool.workers} == processes
    await until(lambda: all(worker.num_models == 1 for worker in registry.pool.workers))


async def test_failure_to_load_is_told_and_leaves_no_process(registry: Any) -> None:
    with pytest.raises((ConfigError, ScorerUnusableError), match="nowhere"):
        await registry.load("model", {"model": Replicated(function="nowhere.py:f")})
    assert registry.pool.workers == []


async def test_two_models_share_processes_until_the_last_is_gone(registry: Any) -> None:
    await registry.load("model", {"model": Replicated()})
    await registry.load("other", {"other": Replicated(replicas=1)})
    first, second = registry.pool.workers
    assert (first.num_models, second.num_models) == (2, 1)
    await registry.unload("model")
    await until(lambda: registry.pool.workers == [first])
    assert int((await registry.get("other").score(samples("x")))[0].value) == first.pid
    await registry.unload("other")
    await until(lambda: registry.pool.workers == [])
