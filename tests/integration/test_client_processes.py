"""What happens to a client when processes die, restart and fork."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child_process import call_in_child
from fake_reward_service import Script, start

from rewardsvc.policy_client import AsyncRewardClient, RetryPolicy, RewardClient
from rewardsvc.policy_client.client.reward_function import RewardFunction

PROGRAM = Path(__file__).parent.parent / "fake_reward_service.py"
QUICK = RetryPolicy(initial_backoff_s=0.05, max_backoff_s=0.3)


class ServerProcess:
    """A server of its own that can be killed and started again on the same port."""

    def __init__(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self._process: subprocess.Popen[str] | None = None

    def start(self, delay_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(self.port), str(delay_s)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == str(self.port)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@pytest.fixture
def process() -> Iterator[ServerProcess]:
    server = ServerProcess()
    server.start(delay_s=0.2)
    yield server
    server.kill()


def _restart_soon(process: ServerProcess) -> threading.Thread:
    """SIGKILL while calls are under way, and a new server on the same port."""

    def run() -> None:
        time.sleep(0.5)
        process.kill()
        time.sleep(0.5)
        process.start(delay_s=0.0)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_call_outlives_the_killing_and_restart_of_its_server(process: ServerProcess) -> None:
    address = f"127.0.0.1:{process.port}"
    arguments: dict[str, Any] = {"max_samples_per_call": 1, "max_in_flight": 2, "retry": QUICK}
    with RewardClient(address, timeout_s=60.0, **arguments) as client:
        assert client.score("s", ["p"], ["1"]).values.tolist() == [1]
        restarting = _restart_soon(process)
        batch = client.score("s", ["p"] * 20, [str(i) for i in range(20)])
        restarting.join(60)
    assert batch.values.tolist() == list(range(20))


async def test_an_async_call_outlives_it_too(process: ServerProcess) -> None:
    address = f"127.0.0.1:{process.port}"
    arguments: dict[str, Any] = {"max_samples_per_call": 1, "max_in_flight": 2, "retry": QUICK}
    async with AsyncRewardClient(address, timeout_s=60.0, **arguments) as client:
        assert (await client.score("s", ["p"], ["1"])).values.tolist() == [1]
        restarting = _restart_soon(process)
        batch = await client.score("s", ["p"] * 20, [str(i) for i in range(20)])
        await asyncio.to_thread(restarting.join, 60)
    assert batch.values.tolist() == list(range(20))


def test_a_stream_outlives_the_killing_and_restart_of_its_server(process: ServerProcess) -> None:
    def source() -> Iterator[dict[str, str]]:
        for i in range(40):
            time.sleep(0.05)
            yield {"completion": str(i)}

    with RewardClient(f"127.0.0.1:{process.port}", timeout_s=60.0, retry=QUICK) as client:
        restarting = _restart_soon(process)
        answers = list(client.score_stream("s", source()))
        restarting.join(60)
    assert len(answers) == 40
    assert {key: score.value for key, score in answers} == {str(i): float(i) for i in range(40)}


@pytest.fixture
def address() -> Iterator[str]:
    server, port = start(Script())
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def _answer_of_child(context: Any, function: RewardFunction) -> Any:
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=call_in_child, args=(function, sender))
    child.start()
    try:
        assert receiver.poll(60), "the child did not answer"
        return receiver.recv()
    finally:
        child.kill()
        child.join(30)


def test_a_reward_function_works_in_a_new_process(address: str) -> None:
    function = RewardClient(address, timeout_s=30.0).reward_function("s")
    context = multiprocessing.get_context("spawn")
    assert _answer_of_child(context, function) == [3.0, None]
    function.close()


FORKING_PROGRAM = """
import multiprocessing, sys
from rewardsvc.policy_client import RewardClient

def child(function, sender):
    sender.send(function(prompts=["p", "p"], completions=["3", "bad"]))

function = RewardClient(sys.argv[1], timeout_s=30.0).reward_function("s")
assert function(prompts=["p"], completions=["2"]) == [2.0]
context = multiprocessing.get_context("fork")
receiver, sender = context.Pipe(duplex=False)
process = context.Process(target=child, args=(function, sender))
process.start()
assert receiver.poll(40), "the child did not answer"
print(receiver.recv())
process.join(30)
assert function(prompts=["p"], completions=["2"]) == [2.0]
function.close()
"""


def test_a_reward_function_that_was_used_works_after_a_fork(address: str) -> None:
    # Python 3.12 warns of any fork with threads, which is what this is about.
    run = subprocess.run(
        [sys.executable, "-c", FORKING_PROGRAM, address],
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[3.0, None]"


def test_a_reward_function_survives_pickling(address: str) -> None:
    function = RewardClient(address, timeout_s=30.0, max_samples_per_call=1).reward_function(
        "s", name="length", answer_column="gold"
    )
    copy = pickle.loads(pickle.dumps(function))
    assert copy.__name__ == "length"
    assert copy(prompts=["p"] * 2, completions=["2", "3"], gold=["2", "2"]) == [1.0, 0.0]
    copy.close()
