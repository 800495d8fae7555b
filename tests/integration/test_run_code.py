"""SandboxService.RunCode through a real server."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from rewardsvc.servicers.sandbox import STATUSES
from rewardsvc.v1 import reward_pb2 as reward_pb
from rewardsvc.v1 import sandbox_pb2 as pb
from rewardsvc.v1 import sandbox_pb2_grpc
from rewardsvc.verifiers.sandbox import RunStatus

Connect = Callable[..., Any]

CONFIG = """
server: {port: 0}
sandbox: {enabled: true, num_slots: 2, max_memory_mib: 512}
scorers:
  exact: {type: exact}
  tests: {type: code, time_limit_ms: 2000, num_slots: 2}
"""


async def stub_of(connect: Connect, config: str = CONFIG) -> tuple[Any, Any]:
    server = await connect(config)
    return server, sandbox_pb2_grpc.SandboxServiceStub(server.channel)


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def test_every_status_has_its_number_on_the_wire() -> None:
    assert set(STATUSES) == set(RunStatus)
    named = {v.name for v in pb.DESCRIPTOR.enum_types_by_name["RunStatus"].values}
    assert named == {f"RUN_STATUS_{s.name}" for s in RunStatus} | {"RUN_STATUS_UNSPECIFIED"}


async def test_programs_run_and_tell_what_they_did(connect: Connect) -> None:
    _, stub = await stub_of(connect)
    code = "import sys\nopen('out.txt', 'w').write(sys.stdin.read()[::-1])\nprint('done')\n"
    reply = await stub.RunCode(
        pb.RunCodeRequest(language="python", code=code, stdin=b"abc", fetch_files=["out.txt"])
    )
    assert reply.status == pb.RUN_STATUS_FINISHED
    assert (reply.exit_code, reply.stdout) == (0, b"done\n")
    assert dict(reply.files) == {"out.txt": b"cba"}

    reply = await stub.RunCode(
        pb.RunCodeRequest(language="python", code="print(open('in').read())", files={"in": b"x"})
    )
    assert reply.stdout == b"x\n"

    reply = await stub.RunCode(pb.RunCodeRequest(language="python", code="raise SystemExit(3)"))
    assert (reply.status, reply.exit_code) == (pb.RUN_STATUS_FINISHED, 3)

    limits = pb.RunLimits(cpu_time_ms=300)
    reply = await stub.RunCode(
        pb.RunCodeRequest(language="python", code="while True: pass", limits=limits)
    )
    assert reply.status == pb.RUN_STATUS_TIME_LIMIT


async def test_bad_requests_are_named_by_field(connect: Connect) -> None:
    _, stub = await stub_of(connect)
    for request, said in (
        (pb.RunCodeRequest(language="klingon", code="x"), "language"),
        (pb.RunCodeRequest(language="python", files={"../up": b""}), "files"),
        (
            pb.RunCodeRequest(language="python", limits=pb.RunLimits(memory_mib=4096)),
            "limits.memory_mib: 4096",
        ),
        (
            pb.RunCodeRequest(language="python", limits=pb.RunLimits(cpu_time_ms=-1)),
            "limits.cpu_time_ms: -1",
        ),
    ):
        code, details = await status_of(stub.RunCode(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, details
        assert said in details


async def test_a_program_that_outlives_the_deadline_is_killed(connect: Connect) -> None:
    server, stub = await stub_of(connect)
    request = pb.RunCodeRequest(language="python", code="import time\ntime.sleep(60)")
    code, _ = await status_of(stub.RunCode(request, timeout=0.7))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    reply = await stub.RunCode(pb.RunCodeRequest(language="python", code="print(1)"))
    assert reply.stdout == b"1\n"
    assert server.server.gate.num_calls == 0


async def test_without_a_sandbox_it_says_what_to_do(connect: Connect) -> None:
    _, stub = await stub_of(connect, "server: {port: 0}\nscorers: {exact: {type: exact}}")
    code, details = await status_of(stub.RunCode(pb.RunCodeRequest(language="python", code="1")))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "sandbox.enabled" in details


async def test_the_code_scorer_judges_programs_by_their_tests(connect: Connect) -> None:
    server, _ = await stub_of(connect)
    tests = json.dumps(
        {"type": "function", "function": "add", "tests": [{"args": [1, 2], "expected": 3}]}
    )
    right = "```python\ndef add(a, b):\n    return a + b\n```"
    wrong = "```python\ndef add(a, b):\n    return a - b\n```"
    cheat = "```python\nimport os\ndef add(a, b):\n    os._exit(0)\n```"
    samples = [
        reward_pb.Sample(completion_text=text, tests_json=document)
        for text, document in ((right, tests), (wrong, tests), (cheat, tests), (right, "{"))
    ]
    reply = await server.reward.Score(reward_pb.ScoreRequest(scorer="tests", samples=samples))
    values = np.frombuffer(reply.batch.values, "<f4")
    assert values[:3].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(values[3])
    details = {detail.index: detail for detail in reply.batch.details}
    assert details[3].error.code == reward_pb.ITEM_ERROR_CODE_BAD_REFERENCE
    assert details[1].verdict == reward_pb.VERDICT_WRONG_ANSWER
