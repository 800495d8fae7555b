"""A reward service in a process of its own."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewardsvc.policy_client import RewardClient

START_TIMEOUT_S = 60.0


class Service:
    """A running `rewardsvc serve`.

    Attributes:
        address: HOST:PORT of gRPC.
    """

    def __init__(self, address: str, metrics_port: int) -> None:
        self.address = address
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"

    def num_rpcs(self, scorer: str) -> int:
        """Score calls that the service itself has counted."""
        with urllib.request.urlopen(self._metrics_url, timeout=10) as reply:
            page = reply.read().decode()
        found = re.search(rf'rewardsvc_scorer_seconds_count{{scorer="{scorer}"}} (\S+)', page)
        return int(float(found[1])) if found else 0


@contextmanager
def running_service(config: Path) -> Iterator[Service]:
    """Runs `rewardsvc serve CONFIG` on free ports within the block; SIGTERM ends it."""
    port, metrics_port = free_port(), free_port()
    command = [sys.executable, "-m", "rewardsvc", "serve", str(config)]
    command += ["--port", str(port), "--metrics-port", str(metrics_port)]
    process = subprocess.Popen(command)
    try:
        address = f"127.0.0.1:{port}"
        with RewardClient(address) as client:
            client.wait_until_ready(timeout_s=START_TIMEOUT_S)
        yield Service(address, metrics_port)
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
