"""Real servers on loopback: in this process, or one of their own that can be killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from rewardsvc.config import load_config
from rewardsvc.server import Server
from rewardsvc.v1 import admin_pb2_grpc, reward_pb2_grpc

START_TIMEOUT_S = 60.0

USER_SCORERS = '''
"""Scorers with knobs: the sample's text says what happens to it."""
import asyncio, math, os, time

def length(sample):
    return float(len(sample.completion_text))

async def obey(sample):
    word, _, argument = sample.completion_text.partition(":")
    if word == "sleep":
        await asyncio.sleep(float(argument))
    if word == "raise":
        raise ValueError(argument)
    if word == "nan":
        return math.nan
    if word == "none":
        return None
    return 1.0

def wrong_length(samples):
    return [1.0] * (len(samples) - 1)
'''

LIGHT_CONFIG = """
server: {port: 0, drain_timeout_s: 20}
scorers:
  length: {type: python, function: "user_scorers.py:length"}
  obey: {type: python, function: "user_scorers.py:obey"}
  exact: {type: exact}
  sum: {type: sum, of: {length: 0.5, exact: 1.0}}
"""


class Connection:
    """Stubs of one running in-process server."""

    def __init__(self, server: Server, channel: Any) -> None:
        self.server = server
        self.channel = channel
        self.reward: Any = reward_pb2_grpc.RewardServiceStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(channel)


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await connect(yaml)`: a ready server of that configuration in this process."""
    running: list[Connection] = []
    (tmp_path / "user_scorers.py").write_text(USER_SCORERS, encoding="utf-8")

    async def start(text: str = LIGHT_CONFIG, *, wait: bool = True) -> Connection:
        file = tmp_path / "service.yaml"
        file.write_text(text, encoding="utf-8")
        server = Server(load_config(file), tmp_path)
        await server.start()
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}",
            options=[("grpc.max_receive_message_length", -1)],
        )
        running.append(Connection(server, channel))
        if wait:
            await asyncio.wait_for(server.ready(), START_TIMEOUT_S)
        return running[-1]

    yield start
    for connection in running:
        await connection.channel.close()
        await connection.server.stop()


class ServerProcess:
    """`rewardsvc serve` in a process of its own, its log collected."""

    def __init__(self, config: Path, *arguments: str) -> None:
        self.config = config
        self.arguments = arguments
        self.log: list[str] = []
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT that it listens on."""
        return f"127.0.0.1:{self.port}"

    def start(self, wait_for: str = r"serving \d+ scorers") -> ServerProcess:
        """Starts it, on its earlier port if it had one, and waits for a line of its log."""
        command = [sys.executable, "-m", "rewardsvc", "serve", str(self.config), *self.arguments]
        if self.port:
            command += ["--port", str(self.port)]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        seen = threading.Event()
        pattern = re.compile(wait_for)

        def collect() -> None:
            assert self.process is not None
            assert self.process.stderr is not None
            for line in self.process.stderr:
                self.log.append(line)
                listening = re.search(r"listening on [\d.]+:(\d+)", line)
                if listening:
                    self.port = int(listening[1])
                if pattern.search(line):
                    seen.set()
            seen.set()

        self._reader = threading.Thread(target=collect, daemon=True)
        self._reader.start()
        if not seen.wait(START_TIMEOUT_S) or not any(map(pattern.search, self.log)):
            self.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.log))
        return self

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Waits for it to end and returns its exit status."""
        assert self.process is not None
        code = self.process.wait(timeout_s)
        self._reader.join(5.0)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None and self.process.stderr and not self.process.stderr.closed:
            self.wait()


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`server_process(yaml)`: a server in a process of its own, started and ready."""
    running: list[ServerProcess] = []
    (tmp_path / "user_scorers.py").write_text(USER_SCORERS, encoding="utf-8")

    def start(text: str = LIGHT_CONFIG, *arguments: str) -> ServerProcess:
        file = tmp_path / f"service{len(running)}.yaml"
        file.write_text(text, encoding="utf-8")
        running.append(ServerProcess(file, *arguments))
        return running[-1].start()

    yield start
    for process in running:
        process.kill()
