"""A server as operators meet it: a process with signals, exit codes and a log."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fixtures_server import ServerProcess
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rewardsvc.v1 import reward_pb2 as pb
from rewardsvc.v1 import reward_pb2_grpc

Start = Callable[..., Any]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def score(stub: Any, completion: str, timeout: float = 30.0) -> Any:
    request = pb.ScoreRequest(scorer="obey", samples=[pb.Sample(completion_text=completion)])
    return stub.Score(request, timeout=timeout)


def test_sigterm_finishes_what_is_in_flight_and_refuses_the_rest(server_process: Start) -> None:
    server = server_process()
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
        score(stub, "warm")
        finished: list[Any] = []
        slow = threading.Thread(target=lambda: finished.append(score(stub, "sleep:3")))
        slow.start()
        time.sleep(0.5)
        server.send(signal.SIGTERM)
        time.sleep(0.5)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            score(stub, "late")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "draining" in caught.value.details()
        slow.join(20)
        assert finished, "the call in flight was lost"
        assert not finished[0].batch.details
    assert server.wait() == 0
    assert any("stopped" in line for line in server.log)


def test_a_second_signal_stops_at_once(server_process: Start) -> None:
    server = server_process()
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        score(stub, "warm")
        call = stub.Score.future(
            pb.ScoreRequest(scorer="obey", samples=[pb.Sample(completion_text="sleep:60")])
        )
        time.sleep(0.5)
        server.send(signal.SIGTERM)
        time.sleep(0.3)
        server.send(signal.SIGTERM)
        assert server.wait(15) == 128 + signal.SIGTERM
        call.cancel()


def test_it_answers_not_serving_while_it_loads(server_process: Start, tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text(
        "import time\ntime.sleep(4)\ndef f(sample):\n    return 1.0\n", encoding="utf-8"
    )
    config = tmp_path / "slow.yaml"
    config.write_text(
        'server: {port: 0}\nscorers: {obey: {type: python, function: "slow_module.py:f"}}',
        encoding="utf-8",
    )
    server = ServerProcess(config).start(wait_for="listening on")
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)
            reply = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert reply.status == NOT_SERVING
            info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
            assert [s.state for s in info.scorers] == [pb.SCORER_STATE_LOADING]
            with pytest.raises(grpc.RpcError) as caught:
                score(stub, "early")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "loading" in caught.value.details()
            until = time.monotonic() + 30
            while time.monotonic() < until:
                if health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING:
                    break
                time.sleep(0.1)
            assert not score(stub, "now").batch.details
    finally:
        server.kill()


def test_two_servers_cannot_share_a_port(server_process: Start) -> None:
    first = server_process()
    with pytest.raises(RuntimeError, match=r"server\.port: cannot listen on"):
        server_process(f"server: {{port: {first.port}}}\nscorers: {{exact: {{type: exact}}}}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rewardsvc", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_bad_file_is_exit_two_and_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("scorers: {m: {type: maths}}", encoding="utf-8")
    done = run("serve", str(file))
    assert done.returncode == 2
    assert "scorers.m.type: unknown scorer type 'maths'; did you mean 'math'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_reads_the_file_and_loads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text("scorers: {rm: {type: orm, model: ./nowhere}}", encoding="utf-8")
    done = run("serve", str(file), "--check")
    assert done.returncode == 0, done.stderr
    assert "1 scorers, no errors" in done.stdout


def test_json_logs_are_json(server_process: Start) -> None:
    server = server_process("server: {port: 0, log_format: json}\nscorers: {exact: {type: exact}}")
    server.send(signal.SIGINT)
    assert server.wait() == 0
    events = [json.loads(line) for line in server.log]
    assert any(e["event"].startswith("listening on") and e["level"] == "info" for e in events)


def test_score_command_prints_one_object_a_line(server_process: Start, tmp_path: Path) -> None:
    server = server_process()
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"completion": "7", "answer": "7"}\n\n{"completion": "8", "answer": "7"}\n',
        encoding="utf-8",
    )
    done = run("score", "exact", "--address", server.address, "--file", str(rows))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["value"] for line in lines] == [1.0, 0.0]
    assert [line["verdict"] for line in lines] == ["accepted", "wrong_answer"]
    done = run("score", "nope", "--address", server.address, "--completion", "x")
    assert done.returncode == 1
    assert "nope" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_tells_what_is_here() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    areas = {finding["area"] for finding in findings}
    assert areas == {"machine", "package", "device", "kernels", "sandbox", "language"}
    cpu = next(f for f in findings if f["name"] == "cpu")
    assert cpu["ok"]


def test_a_thread_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "import threading, time\n"
        "def f(sample):\n"
        "    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()\n"
        "    return 1.0\n",
        encoding="utf-8",
    )
    config = tmp_path / "stuck.yaml"
    config.write_text(
        'server: {port: 0}\nscorers: {obey: {type: python, function: "stuck.py:f"}}',
        encoding="utf-8",
    )
    server = ServerProcess(config).start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
            score(stub, "x")
        server.send(signal.SIGTERM)
        assert server.wait(60) == 70
        assert any("a thread hangs" in line for line in server.log)
    finally:
        server.kill()
