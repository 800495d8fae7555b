"""What callers of a running server get, call by call."""

import asyncio
import json
import math
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rewardsvc.v1 import admin_pb2
from rewardsvc.v1 import reward_pb2 as pb

Connect = Callable[..., Any]


def text(completion: str, **fields: Any) -> pb.Sample:
    return pb.Sample(completion_text=completion, **fields)


def values(batch: pb.ScoreBatch) -> list[float]:
    return np.frombuffer(batch.values, "<f4").tolist()  # type: ignore[no-any-return]


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_scores_come_in_the_order_of_the_samples(connect: Connect) -> None:
    server = await connect()
    request = pb.ScoreRequest(scorer="length", samples=[text("a" * n) for n in (3, 0, 7, 1)])
    reply = await server.reward.Score(request)
    assert values(reply.batch) == [3.0, 0.0, 7.0, 1.0]


async def test_a_combination_names_its_parts(connect: Connect) -> None:
    server = await connect()
    request = pb.ScoreRequest(
        scorer="sum", samples=[text("ab", answer="ab"), text("abc", answer="x")]
    )
    reply = await server.reward.Score(request)
    assert values(reply.batch) == [2.0, 1.5]
    parts = {c.name: np.frombuffer(c.values, "<f4").tolist() for c in reply.batch.components}
    assert parts["length"] == [2.0, 3.0]
    assert parts["exact"] == [1.0, 0.0]


async def test_one_bad_sample_never_fails_its_batch(connect: Connect) -> None:
    server = await connect()
    samples = [
        text("fine"),
        text("raise:boom"),
        text("nan"),
        text("none"),
        pb.Sample(prompt_text="no completion"),
        text("fine", metadata_json="{"),
        text("fine"),
    ]
    reply = await server.reward.Score(pb.ScoreRequest(scorer="obey", samples=samples))
    got = values(reply.batch)
    assert [got[0], got[6]] == [1.0, 1.0]
    assert all(math.isnan(v) for v in got[1:6])
    errors = {d.index: d.error for d in reply.batch.details if d.HasField("error")}
    assert set(errors) == {1, 2, 3, 4, 5}
    assert errors[1].code == pb.ITEM_ERROR_CODE_SCORER_EXCEPTION
    assert "ValueError: boom" in errors[1].message
    assert errors[2].code == pb.ITEM_ERROR_CODE_NON_FINITE
    assert "completion: missing" in errors[4].message
    assert "metadata_json" in errors[5].message


async def test_text_that_is_not_utf8_costs_its_own_sample_only(connect: Connect) -> None:
    server = await connect()
    raw = pb.ScoreRequest(
        scorer="length", samples=[text("good"), text("QQQQ"), text("fine!")]
    ).SerializeToString()
    call = server.channel.unary_unary(
        "/rewardsvc.v1.RewardService/Score",
        request_serializer=lambda data: data,
        response_deserializer=pb.ScoreResponse.FromString,
    )
    reply = await call(raw.replace(b"QQQQ", b"Q\xff\xfeQ"))
    got = values(reply.batch)
    assert [got[0], got[2]] == [4.0, 5.0]
    assert math.isnan(got[1])
    assert "completion_text: not UTF-8 at byte 1" in reply.batch.details[0].error.message


async def test_call_errors_have_the_status_of_the_table(connect: Connect) -> None:
    server = await connect(
        """
server: {port: 0, max_samples_per_call: 4}
scorers:
  length: {type: python, function: "user_scorers.py:length"}
  gone: {type: python, function: "nowhere.py:f"}
"""
    )
    score = server.reward.Score
    code, said = await status_of(score(pb.ScoreRequest(scorer="nope", samples=[text("x")])))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "'nope'" in said
    assert "length" in said
    code, said = await status_of(score(pb.ScoreRequest(samples=[text("x")])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    code, said = await status_of(score(pb.ScoreRequest(scorer="length", samples=[text("x")] * 5)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "samples: 5 in one call, at most 4" in said
    code, said = await status_of(
        score(pb.ScoreRequest(scorer="length", samples=[text("x")], priority=101))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "priority: 101" in said
    code, said = await status_of(score(pb.ScoreRequest(scorer="gone", samples=[text("x")])))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "nowhere.py" in said
    code, said = await status_of(
        server.reward.TokenLogProbs(pb.TokenLogProbsRequest(scorer="length"))
    )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "causal_lm" in said
    code, said = await status_of(
        server.reward.TokenLogProbs(
            pb.TokenLogProbsRequest(scorer="length", temperature=float("nan"))
        )
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "temperature" in said


async def test_a_scorer_that_breaks_its_contract_is_internal_and_tells_nothing(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await connect()
    scorer = server.server.registry.get("exact").live.scorer

    async def broken(samples: Any) -> Any:
        raise RuntimeError("secret path /etc/shadow")

    monkeypatch.setattr(scorer, "score", broken)
    code, said = await status_of(
        server.reward.Score(pb.ScoreRequest(scorer="exact", samples=[text("x")]))
    )
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in said


async def test_an_empty_call_is_answered_with_nothing(connect: Connect) -> None:
    server = await connect()
    reply = await server.reward.Score(pb.ScoreRequest(scorer="length"))
    assert reply.batch.values == b""


async def test_ten_thousand_samples_in_one_call(connect: Connect) -> None:
    server = await connect()
    request = pb.ScoreRequest(
        scorer="exact", samples=[text(str(n), answer="7") for n in range(10_000)]
    )
    reply = await server.reward.Score(request)
    assert np.flatnonzero(values(reply.batch)).tolist() == [7]


async def test_a_deadline_ends_the_call_and_drops_the_work(connect: Connect) -> None:
    server = await connect()
    request = pb.ScoreRequest(scorer="obey", samples=[text("sleep:30")])
    code, _ = await status_of(server.reward.Score(request, timeout=0.3))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.sleep(0.2)
    assert server.server.gate.num_calls == 0


async def test_calls_without_a_deadline_get_the_servers(connect: Connect) -> None:
    server = await connect(
        """
server: {port: 0, default_deadline_s: 0.3}
scorers: {obey: {type: python, function: "user_scorers.py:obey"}}
"""
    )
    request = pb.ScoreRequest(scorer="obey", samples=[text("sleep:30")])
    code, said = await status_of(server.reward.Score(request))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.300 s" in said


async def test_server_info_lists_scorers_with_state(connect: Connect) -> None:
    server = await connect()
    info = await server.reward.GetServerInfo(pb.GetServerInfoRequest())
    assert {s.name: s.type for s in info.scorers}["sum"] == "sum"
    assert {s.state for s in info.scorers} == {pb.SCORER_STATE_READY}
    assert info.max_samples_per_call == 16_384


async def test_a_message_over_the_limit_is_refused_and_the_server_lives(connect: Connect) -> None:
    server = await connect(
        """
server: {port: 0, max_message_mib: 1}
scorers: {exact: {type: exact}}
"""
    )
    huge = pb.ScoreRequest(scorer="exact", samples=[text("x" * (2 << 20), answer="x")])
    code, _ = await status_of(server.reward.Score(huge))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    reply = await server.reward.Score(
        pb.ScoreRequest(scorer="exact", samples=[text("x", answer="x")])
    )
    assert values(reply.batch) == [1.0]


async def stream(
    server: Any, requests: list[pb.ScoreStreamRequest], **options: Any
) -> AsyncIterator[tuple[str, float, pb.ItemDetail]]:
    async def send() -> AsyncIterator[pb.ScoreStreamRequest]:
        for request in requests:
            yield request

    call = server.reward.ScoreStream(send(), **options)
    try:
        async for reply in call:
            details = {d.index: d for d in reply.batch.details}
            for i, (name, value) in enumerate(zip(reply.ids, values(reply.batch), strict=True)):
                yield name, value, details.get(i, pb.ItemDetail())
    finally:
        call.cancel()


def request(scorer: str, *samples: tuple[str, str]) -> pb.ScoreStreamRequest:
    return pb.ScoreStreamRequest(
        scorer=scorer, samples=[text(completion, id=name) for name, completion in samples]
    )


async def test_a_stream_answers_as_soon_as_it_can(connect: Connect) -> None:
    server = await connect()
    answers = [
        name
        async for name, _, _ in stream(
            server, [request("obey", ("slow", "sleep:0.5")), request("obey", ("fast", "now"))]
        )
    ]
    assert answers == ["fast", "slow"]


async def test_a_streams_samples_may_go_to_different_scorers(connect: Connect) -> None:
    server = await connect()
    got = {
        name: value
        async for name, value, _ in stream(
            server, [request("length", ("a", "xx"), ("b", "xxx")), request("obey", ("c", "x"))]
        )
    }
    assert got == {"a": 2.0, "b": 3.0, "c": 1.0}


async def test_a_streams_bad_message_harms_no_other(connect: Connect) -> None:
    server = await connect()
    got = {
        name: (value, detail)
        async for name, value, detail in stream(
            server,
            [request("nope", ("a", "x")), request("obey", ("b", "x"), ("c", "raise:no"))],
        )
    }
    assert got["b"][0] == 1.0
    assert got["a"][1].error.code == pb.ITEM_ERROR_CODE_UNKNOWN_SCORER
    assert got["c"][1].error.code == pb.ITEM_ERROR_CODE_SCORER_EXCEPTION
    assert math.isnan(got["a"][0])


async def test_a_streams_broken_scorer_is_an_error_that_no_retry_mends(connect: Connect) -> None:
    server = await connect(
        """
server: {port: 0}
scorers:
  exact: {type: exact}
  gone: {type: python, function: "nowhere.py:f"}
"""
    )
    ((_, value, detail),) = [a async for a in stream(server, [request("gone", ("a", "x"))])]
    assert math.isnan(value)
    assert detail.error.code == pb.ITEM_ERROR_CODE_SCORER_UNUSABLE
    assert not detail.error.retryable
    assert "nowhere.py" in detail.error.message


@pytest.mark.parametrize(
    "requests",
    [
        [request("length", ("", "x"))],
        [request("length", ("a", "x"), ("a", "y"))],
        [request("obey", ("a", "sleep:1")), request("obey", ("a", "x"))],
    ],
)
async def test_ids_that_match_nothing_end_the_stream(
    connect: Connect, requests: list[pb.ScoreStreamRequest]
) -> None:
    server = await connect()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stream(server, requests):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "id" in (caught.value.details() or "")


async def test_a_streams_window_bounds_what_is_in_flight(connect: Connect) -> None:
    server = await connect(
        """
server: {port: 0, max_stream_samples: 2}
scorers: {obey: {type: python, function: "user_scorers.py:obey"}}
"""
    )
    many = [request("obey", (str(n), "sleep:0.01")) for n in range(20)]
    many.append(request("obey", *((f"big{n}", "x") for n in range(9))))
    assert len([name async for name, _, _ in stream(server, many)]) == 29


async def test_leaving_a_stream_leaves_nothing_behind(connect: Connect) -> None:
    server = await connect()
    call = stream(server, [request("obey", ("a", "x")), request("obey", ("b", "sleep:60"))])
    async for name, _, _ in call:
        assert name == "a"
        break
    await call.aclose()  # type: ignore[attr-defined]
    for _ in range(100):
        if server.server.gate.num_calls == 0:
            break
        await asyncio.sleep(0.02)
    assert server.server.gate.num_calls == 0


async def test_admin_is_off_unless_turned_on(connect: Connect) -> None:
    server = await connect()
    code, said = await status_of(server.admin.ListScorers(admin_pb2.ListScorersRequest()))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "server.admin.enabled" in said


async def test_admin_loads_reloads_and_unloads(connect: Connect) -> None:
    server = await connect(
        "server: {port: 0, admin: {enabled: true}}\nscorers: {exact: {type: exact}}"
    )
    config = json.dumps({"type": "clip", "of": "exact", "min": 0, "max": 0.5})
    loaded = await server.admin.LoadScorer(
        admin_pb2.LoadScorerRequest(name="half", config_json=config)
    )
    assert loaded.scorer.state == pb.SCORER_STATE_READY
    sample = text("x", answer="x")
    reply = await server.reward.Score(pb.ScoreRequest(scorer="half", samples=[sample]))
    assert values(reply.batch) == [0.5]
    await server.admin.ReloadScorer(admin_pb2.ReloadScorerRequest(name="half"))
    code, said = await status_of(
        server.admin.UnloadScorer(admin_pb2.UnloadScorerRequest(name="exact"))
    )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    await server.admin.UnloadScorer(admin_pb2.UnloadScorerRequest(name="half"))
    listed = await server.admin.ListScorers(admin_pb2.ListScorersRequest())
    assert [s.name for s in listed.scorers] == ["exact"]
    for bad, wanted in (
        ('{"type": "python", "function": "os:getcwd"}', grpc.StatusCode.PERMISSION_DENIED),
        ('{"type": "nope"}', grpc.StatusCode.INVALID_ARGUMENT),
        ('{"type": "clip", "of": "bad", "min": 0, "max": 1}', grpc.StatusCode.INVALID_ARGUMENT),
        ("{", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        request = admin_pb2.LoadScorerRequest(name="bad", config_json=bad)
        code, said = await status_of(server.admin.LoadScorer(request))
        assert code is wanted, said
    taken = admin_pb2.LoadScorerRequest(name="exact", config_json='{"type": "exact"}')
    code, said = await status_of(server.admin.LoadScorer(taken))
    assert code is grpc.StatusCode.ALREADY_EXISTS


async def test_a_server_without_a_working_scorer_is_not_healthy_until_one_is_repaired(
    connect: Connect, tmp_path: Path
) -> None:
    server = await connect(
        """
server: {port: 0, admin: {enabled: true}}
scorers: {late: {type: python, function: "late.py:f"}}
"""
    )
    health: Any = health_pb2_grpc.HealthStub(server.channel)

    async def status() -> Any:
        return (await health.Check(health_pb2.HealthCheckRequest())).status

    assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING
    (tmp_path / "late.py").write_text("def f(sample):\n    return 1.0\n", encoding="utf-8")
    await server.admin.ReloadScorer(admin_pb2.ReloadScorerRequest(name="late"))
    assert await status() == health_pb2.HealthCheckResponse.SERVING
    await server.admin.UnloadScorer(admin_pb2.UnloadScorerRequest(name="late"))
    assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_keys_are_asked_of_everybody_but_health_checks(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RS_KEY", "user-key")
    monkeypatch.setenv("RS_ADMIN", "admin-key")
    server = await connect(
        """
server: {port: 0, api_key_env: RS_KEY, admin: {enabled: true, api_key_env: RS_ADMIN}}
scorers: {exact: {type: exact}}
"""
    )
    sample = pb.ScoreRequest(scorer="exact", samples=[text("x", answer="x")])
    score, listing = server.reward.Score, server.admin.ListScorers
    for metadata in (None, (("authorization", "Bearer wrong"),), (("authorization", "user-key"),)):
        code, _ = await status_of(score(sample, metadata=metadata))
        assert code is grpc.StatusCode.UNAUTHENTICATED
    for metadata in ((("authorization", "Bearer user-key"),), (("x-api-key", "user-key"),)):
        assert values((await score(sample, metadata=metadata)).batch) == [1.0]
        code, _ = await status_of(listing(admin_pb2.ListScorersRequest(), metadata=metadata))
        assert code is grpc.StatusCode.UNAUTHENTICATED
    await listing(admin_pb2.ListScorersRequest(), metadata=(("x-api-key", "admin-key"),))
    call = server.reward.ScoreStream(iter([request("exact", ("a", "x"))]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    reply = await health.Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services(connect: Connect) -> None:
    server = await connect()
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async for reply in stub.ServerReflectionInfo(iter([asked])):
        names = {s.name for s in reply.list_services_response.service}
    assert {"rewardsvc.v1.RewardService", "grpc.health.v1.Health"} <= names


async def test_metrics_tell_of_every_scorer_and_outcome(connect: Connect) -> None:
    server = await connect(
        """
server: {port: 0, metrics_port: 0}
scorers: {obey: {type: python, function: "user_scorers.py:obey"}}
"""
    )
    await server.reward.Score(
        pb.ScoreRequest(scorer="obey", samples=[text("x"), text("raise:no"), text("x")])
    )
    url = f"http://127.0.0.1:{server.server.metrics_port}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    assert 'rewardsvc_samples_total{outcome="ok",scorer="obey"} 2.0' in page
    assert 'rewardsvc_samples_total{outcome="scorer_exception",scorer="obey"} 1.0' in page
    assert 'rewardsvc_scorer_seconds_count{scorer="obey"} 1.0' in page
    assert "rewardsvc_calls_in_flight 0.0" in page
