"""kill -9 in mid-run: callers get an error and no reward, the next call works, nothing is left."""

import time
from collections.abc import Callable
from typing import Any

import grpc
import psutil
import pytest
from fixtures_server import START_TIMEOUT_S

from rewardsvc.v1 import sandbox_pb2 as pb
from rewardsvc.v1 import sandbox_pb2_grpc
from rewardsvc.verifiers.sandbox.cgroups import find_home, group_folders

CONFIG = """
server: {port: 0}
sandbox: {enabled: true, num_slots: 2}
scorers: {exact: {type: exact}}
"""
ASLEEP = "import time\ntime.sleep(60)"


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


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
