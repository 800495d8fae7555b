"""Models in worker processes: the same scores, from several of them, whatever becomes of one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tiny_models
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rewardsvc.policy_client import AsyncRewardClient, ScorerUnusable
from rewardsvc.v1 import admin_pb2
from rewardsvc.v1 import reward_pb2 as pb

Connect = Callable[..., Any]
PROMPTS = [f"{i % 7}+{i % 5}" for i in range(48)]
COMPLETIONS = [f"= {i} {'abc' * (i % 4)}" for i in range(48)]
"""Each is in it once, so that nothing is answered without being computed."""


def client_of(server: Any) -> AsyncRewardClient:
    return AsyncRewardClient(f"127.0.0.1:{server.server.port}", timeout_s=60.0)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def serve(connect: Connect, scorers: dict[str, Any], **server: Any) -> Any:
    config = {
        "server": {"port": 0, "admin": {"enabled": True}, **server},
        "engine": {"num_torch_threads": 1, "max_batch_tokens": 256, "drain_s": 5},
        "scorers": scorers,
    }
    return await connect(json.dumps(config))


def workers(server: Any) -> list[Any]:
    return server.server.workers.workers


async def test_two_replicas_score_like_this_process_and_share_the_work(
    connect: Connect, tmp_path: Path
) -> None:
    orm = str(tiny_models.write_reward_model(tmp_path / "orm", "llama"))
    lm = str(tiny_models.write_causal_lm(tmp_path / "lm", "llama"))
    server = await serve(
        connect,
        {
            "here": {"type": "orm", "model": orm},
            "there": {"type": "orm", "model": orm, "replicas": 2},
            "lm-here": {"type": "causal_lm", "model": lm},
            "lm-there": {"type": "causal_lm", "model": lm, "replicas": 2},
            "sum": {"type": "sum", "of": {"there": 2.0, "here": -1.0}},
            "broken": {"type": "orm", "model": str(tmp_path / "nowhere"), "replicas": 1},
        },
        metrics_port=0,
    )
    async with client_of(server) as client:
        here = await client.score("here", PROMPTS, COMPLETIONS)
        there = await client.score("there", PROMPTS, COMPLETIONS)
        np.testing.assert_allclose(there.values, here.values, atol=1e-5)
        assert there.versions == here.versions
        both = await client.score("sum", PROMPTS, COMPLETIONS)
        np.testing.assert_allclose(both.values, here.values, atol=1e-4)

        prompts, completions = [[1, 10, 11], [1, 12]], [[13, 14, 15], []]
        ours = await client.token_logprobs("lm-here", prompts, completions, entropy=True)
        theirs = await client.token_logprobs("lm-there", prompts, completions, entropy=True)
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert ours.entropies is not None
        assert theirs.entropies is not None
        np.testing.assert_allclose(ours.entropies[0], theirs.entropies[0], atol=1e-5)

        bad = await client.score("there", ["a"] * 3, ["b", "x" * 500, "c"])
        assert [error is None for error in bad.errors] == [True, False, True]
        with pytest.raises(ScorerUnusable, match="nowhere"):
            await client.score("broken", ["a"], ["b"])
        with pytest.raises(ScorerUnusable, match="no log-probs"):
            await client.token_logprobs("there", prompts, completions)

    names = {worker.name for worker in workers(server)}
    assert names == {"auto/0", "auto/1"}
    url = f"http://127.0.0.1:{server.server.metrics_port}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    for name in ("auto/0", "auto/1"):
        line = f'rewardsvc_batch_items_sum{{model="there",worker="{name}"}}'
        (found,) = [row for row in page.splitlines() if row.startswith(line)]
        assert float(found.split()[-1]) > 0, "this worker had no share of the work"
    types = [line for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len({line.split()[2] for line in types})


async def test_worker_that_would_come_back_with_other_weights_stays_out_until_reload(
    connect: Connect, tmp_path: Path
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "orm", "llama", seed=0)
    server = await serve(
        connect, {"orm": {"type": "orm", "model": str(folder), "devices": ["cpu", "cpu"]}}
    )
    health = health_pb2_grpc.HealthStub(server.channel)

    async def is_healthy() -> bool:
        reply = await health.Check(health_pb2.HealthCheckRequest())
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async with client_of(server) as client:
        before = await client.score("orm", PROMPTS, COMPLETIONS)
        tiny_models.write_reward_model(folder, "llama", seed=1)
        victim, other = workers(server)
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: victim.num_starts == 2 and victim.is_up)
        assert await is_healthy()
        same = await client.score("orm", PROMPTS, COMPLETIONS)
        np.testing.assert_allclose(same.values, before.values, atol=1e-5)
        assert set(same.versions) == set(before.versions)
        info = await server.reward.GetServerInfo(pb.GetServerInfoRequest())
        assert "1 of 2 workers serve" in info.scorers[0].message
        assert "reload it" in info.scorers[0].message

        await server.admin.ReloadScorer(admin_pb2.ReloadScorerRequest(name="orm"))
        after = await client.score("orm", PROMPTS, COMPLETIONS)
        assert len(set(after.versions)) == 1
        assert set(after.versions) != set(before.versions)
        assert np.abs(after.values - before.values).max() > 0.01
        info = await server.reward.GetServerInfo(pb.GetServerInfoRequest())
        assert info.scorers[0].message == ""

        for worker in (victim, other):
            os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: not victim.is_up and not other.is_up)
        assert not await is_healthy()
        request = pb.ScoreRequest(
            scorer="orm", samples=[pb.Sample(prompt_text="a", completion_text="b")]
        )
        with pytest.raises(grpc.aio.AioRpcError, match="0 of 2 workers serve") as refused:
            await server.reward.Score(request, timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_front_without_models_of_its_own_loads_no_torch_and_no_worker_outlives_it(
    server_process: Callable[..., Any], tmp_path: Path
) -> None:
    orm = str(tiny_models.write_reward_model(tmp_path / "orm", "llama"))
    server = server_process(
        f"server: {{port: 0}}\nscorers: {{orm: {{type: orm, model: {orm}, replicas: 1}}}}"
    )
    front = psutil.Process(server.process.pid)
    (worker,) = front.children()
    assert any("libtorch" in m.path for m in worker.memory_maps())
    assert not any("libtorch" in m.path for m in front.memory_maps())
    server.kill()
    worker.wait(30)
