"""kill -9 in mid-run: callers get an error and no reward, the next call works, nothing is left."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from fixtures_server import START_TIMEOUT_S
from waiting import wait_until

from rewardsvc.v1 import reward_pb2, reward_pb2_grpc, sandbox_pb2_grpc
from rewardsvc.v1 import sandbox_pb2 as pb
from rewardsvc.verifiers.sandbox.cgroups import find_home, group_folders

CONFIG = """
server: {port: 0}
sandbox: {enabled: true, num_slots: 2}
scorers: {exact: {type: exact}}
"""
NUM_SLOTS = 2
CODE_CONFIG = f"""
server: {{port: 0}}
scorers: {{tests: {{type: code, num_slots: {NUM_SLOTS}, time_limit_ms: 60000}}}}
"""
UNDER_WAY_S = 1.3
"""Longer than a run may have gone on that is started over when its sandbox breaks."""
ANSWER_TIMEOUT_S = 30.0
"""Far below the minutes that a sleeping program may take, far above what noticing takes."""
ASLEEP = "import time\ntime.sleep(60)"


def run(stub: Any, code: str, timeout: float = 30.0) -> Any:
    return stub.RunCode.future(pb.RunCodeRequest(language="python", code=code), timeout=timeout)


def cgroups_of(pids: set[int]) -> list[str]:
    home = find_home()
    folders = [f for pid in pids for f in group_folders(home, pid)] if home is not None else []
    return [str(folder) for folder in folders if folder.exists()]


def test_killed_service_leaves_nothing_and_its_successor_works(
    server_process: Callable[..., Any],
) -> None:
    server = server_process(CONFIG)
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = sandbox_pb2_grpc.SandboxServiceStub(channel)
        assert run(stub, "print(1)").result().stdout == b"1\n"
        call = run(stub, ASLEEP)
        time.sleep(0.5)
        family = {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}
        assert len(family) >= 8
        server.kill()
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert wait_until(lambda: not family & set(psutil.pids()))
    assert wait_until(lambda: cgroups_of(family) == [])
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        grpc.channel_ready_future(channel).result(START_TIMEOUT_S)
        stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
        assert run(stub, "print(2)").result().stdout == b"2\n"


def score(stub: Any, programs: list[str]) -> Any:
    tests = json.dumps({"type": "stdio", "tests": [{"stdin": "1", "stdout": "2"}]})
    samples = [
        reward_pb2.Sample(completion_text=f"```python\n{code}\n```", tests_json=tests)
        for code in programs
    ]
    request = reward_pb2.ScoreRequest(scorer="tests", samples=samples)
    return stub.Score.future(request, timeout=ANSWER_TIMEOUT_S)


def rewards(response: Any) -> list[float]:
    return np.frombuffer(response.batch.values, "<f4").tolist()


def by_depth(process: psutil.Process) -> list[list[psutil.Process]]:
    """The processes below one: keepers, porters, supervisors, forkers, children and programs."""
    rows = [process.children()]
    while rows[-1]:
        rows.append([child for one in rows[-1] for child in one.children()])
    return rows[:-1]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("whom", ["keepers", "forkers", "programs", "everything"])
def test_score_under_way_has_errors_at_once_if_the_sandboxes_are_killed(
    server_process: Callable[..., Any], whom: str
) -> None:
    server = server_process(CODE_CONFIG)
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        call = score(stub, [f"{ASLEEP}  # {number}" for number in range(NUM_SLOTS)])
        time.sleep(UNDER_WAY_S)
        rows = by_depth(psutil.Process(server.process.pid))
        before = {process.pid for row in rows for process in row}
        victims = {
            "keepers": rows[0],
            "forkers": rows[3],
            "programs": rows[-1],
            "everything": [process for row in rows for process in row],
        }[whom]
        kill(victims)
        response = call.result()
        assert np.isnan(rewards(response)).all()
        codes = {detail.error.code for detail in response.batch.details}
        assert codes == {reward_pb2.ITEM_ERROR_CODE_SANDBOX_FAILURE}
        assert all(detail.error.retryable for detail in response.batch.details)
        good = ["print(int(input()) + 1)", "print(int(input()) + 2)"]
        assert rewards(score(stub, good).result()) == [1.0, 0.0]
        if whom != "programs":
            assert wait_until(lambda: not before & set(psutil.pids()))
            assert cgroups_of(before) == []
