"""There is one door: whatever way samples come by, they are counted, shared out and named."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny_models

from rewardsvc.v1 import reward_pb2 as pb

Connect = Callable[..., Any]
MAX_ITEMS = 8


class Held:
    """A server whose device does nothing until `release`."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.reward = connection.reward
        self.gate = threading.Event()
        (device,) = connection.server.engine._devices.values()
        for _ in range(1):
            device.run_detached(lambda: self.gate.wait(60))

    @property
    def batchers(self) -> dict[str, Any]:
        return {b._name: b for b in self.connection.server.engine._batchers}

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
async def held(connect: Connect, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await held(**server)`: a server with two models, whose device is held."""
    found: list[Held] = []

    async def start(**server: Any) -> Held:
        orm = str(tiny_models.write_reward_model(tmp_path / "orm", "llama"))
        lm = str(tiny_models.write_causal_lm(tmp_path / "lm", "llama"))
        config = {
            "server": {"port": 0, **server},
            "engine": {"device": "cpu", "num_torch_threads": 1, "max_queue_items": MAX_ITEMS},
            "scorers": {
                "orm": {"type": "orm", "model": orm},
                "lm": {"type": "causal_lm", "model": lm},
                "twice": {"type": "sum", "of": {"orm": 1.0, "lm": 1.0}},
                "robust": {"type": "ensemble", "of": ["twice", "orm"]},
            },
        }
        found.append(Held(await connect(json.dumps(config))))
        return found[-1]

    yield start
    for one in found:
        one.gate.set()


def request(scorer: str, count: int, client: str = "") -> pb.ScoreRequest:
    samples = [pb.Sample(id=str(i), prompt_text="a", completion_text=str(i)) for i in range(count)]
    return pb.ScoreRequest(scorer=scorer, samples=samples, client_id=client)


def logprobs(count: int) -> pb.TokenLogProbsRequest:
    one = bytes([9, 0, 0, 0])
    sequences = [
        pb.TokenSequence(prompt_ids=one, completion_ids=one * (i + 1)) for i in range(count)
    ]
    return pb.TokenLogProbsRequest(scorer="lm", sequences=sequences)


async def stream(server: Held, scorer: str, count: int) -> list[pb.ScoreStreamResponse]:
    async def messages() -> AsyncIterator[pb.ScoreStreamRequest]:
        yield pb.ScoreStreamRequest(scorer=scorer, samples=request(scorer, count).samples)

    return [reply async for reply in server.reward.ScoreStream(messages(), timeout=60)]


async def test_every_way_in_counts_each_sample(held: Callable[..., Any]) -> None:
    server = await held()
    orm, lm = server.batchers["orm"], server.batchers["lm"]
    ways: list[tuple[Any, Any, int, int]] = [
        (server.reward.Score, request("orm", 3), 3, 0),
        (server.reward.Score, request("twice", 3), 3, 3),
        (server.reward.Score, request("robust", 2), 4, 2),
        (server.reward.TokenLogProbs, logprobs(3), 0, 3),
    ]
    for method, message, in_orm, in_lm in ways:
        call = method(message, timeout=60)
        await server.until(lambda n=(in_orm, in_lm): (orm.load, lm.load) == n)  # type: ignore[misc]
        call.cancel()
        await server.until(lambda: (orm.load, lm.load) == (0, 0))
    streaming = asyncio.create_task(stream(server, "twice", 3))
    await server.until(lambda: (orm.load, lm.load) == (3, 3))

    full = [server.reward.Score(request(name, 4), timeout=60) for name in ("orm", "lm")]
    await server.until(lambda: (orm.load, lm.load) == (7, 7))
    for name in ("orm", "lm", "twice", "robust"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.reward.Score(request(name, 2), timeout=60)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.reward.TokenLogProbs(logprobs(2), timeout=60)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (reply,) = await stream(server, "robust", 2)
    codes = [detail.error.code for detail in reply.batch.details]
    assert codes == [pb.ITEM_ERROR_CODE_QUEUE_FULL] * 2

    server.gate.set()
    assert len((await streaming)[0].ids) == 3
    await asyncio.gather(*full)
    assert (orm.load, lm.load) == (0, 0)


async def test_thousand_samples_in_one_call_are_a_thousand(held: Callable[..., Any]) -> None:
    server = await held()
    orm = server.batchers["orm"]
    call = server.reward.Score(request("orm", 1000), timeout=60)
    # Half of the bound: a call that is larger than all of it could never be served.
    await server.until(lambda: orm.load == MAX_ITEMS // 2)
    other = server.reward.Score(request("orm", MAX_ITEMS // 2), timeout=60)
    await server.until(lambda: orm.load == MAX_ITEMS)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.reward.Score(request("orm", 1), timeout=60)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.gate.set()
    assert len((await call).batch.values) == 4000
    await other


async def test_names_of_clients_come_from_key_request_metadata_or_address(
    held: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMON", "common")
    monkeypatch.setenv("KEY_A", "key-a")
    server = await held(api_key_env="COMMON", client_keys={"team-a": "KEY_A"})
    orm = server.batchers["orm"]
    cases = [
        ("key-a", "", None, "team-a"),
        ("key-a", "somebody", "else", "team-a"),
        ("common", "named", "x", "named"),
        ("common", "", "x", "x"),
        ("common", "team-a", None, "ipv4:127.0.0.1"),
        ("common", "", "team-a", "ipv4:127.0.0.1"),
        ("common", "", None, "ipv4:127.0.0.1"),
    ]
    for key, declared, header, expected in cases:
        metadata = [("authorization", f"Bearer {key}")]
        metadata += [("x-client-id", header)] if header else []
        call = server.reward.Score(request("orm", 2, declared), timeout=60, metadata=metadata)
        await server.until(lambda name=expected: orm._queue.load_of(name) == 2)  # type: ignore[misc]
        assert orm.load == 2
        call.cancel()
        await server.until(lambda: orm.load == 0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.reward.Score(request("orm", 1), metadata=[("x-api-key", "wrong")])
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_full_queue_of_one_client_is_open_to_another(held: Callable[..., Any]) -> None:
    server = await held()
    heavy = [server.reward.Score(request("orm", 4, "heavy"), timeout=60) for _ in range(2)]
    await server.until(lambda: server.batchers["orm"].load == 8)
    with pytest.raises(grpc.aio.AioRpcError):
        await server.reward.Score(request("orm", 1, "heavy"), timeout=60)
    light = server.reward.Score(request("orm", 2, "light"), timeout=60)
    await server.until(lambda: server.batchers["orm"].load == 10)
    server.gate.set()
    await light
    await asyncio.gather(*heavy)
    sample = server.connection.server.metrics.registry.get_sample_value
    assert sample("rewardsvc_client_tokens_total", {"client": "light"}) == 6
    assert sample("rewardsvc_client_tokens_total", {"client": "heavy"}) == 24


async def test_labels_of_clients_are_bounded() -> None:
    from rewardsvc.metrics import MAX_CLIENTS, OTHER_CLIENTS, Metrics

    metrics = Metrics()
    for number in range(10 * MAX_CLIENTS):
        metrics.served(f"client-{number}", 5)
    (family,) = [f for f in metrics.registry.collect() if f.name == "rewardsvc_client_tokens"]
    totals = {s.labels["client"]: s.value for s in family.samples if s.name.endswith("_total")}
    assert len(totals) == MAX_CLIENTS + 1
    assert totals[OTHER_CLIENTS] == 5 * 9 * MAX_CLIENTS
