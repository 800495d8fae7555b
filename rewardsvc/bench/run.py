"""Runs a sweep: processes of load, looks at the server, a row for each step."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rewardsvc.bench.client import Load, Outcomes, generate
from rewardsvc.bench.measure import Row, summarise
from rewardsvc.bench.roofline import Machine
from rewardsvc.bench.server_view import between, scrape
from rewardsvc.bench.workload import Call
from rewardsvc.policy_client import (
    DeadlineExceeded,
    RewardClient,
    RewardClientError,
    ServiceUnavailable,
)
from rewardsvc.policy_client.client.settings import ClientSettings

LEAD_S = 0.5
"""From handing a load to its processes to its start: connecting takes a moment."""

STOP_TIMEOUT_S = 30.0
WAIT_STEP_S = 2.0
LOG_TAIL_CHARS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sweep.

    Attributes:
        settings: Where to, with which key.
        calls: For each process, what it sends.
        loads: The steps: slots of the closed loop, or calls a second of the open loop.
        open_loop: Which of the two.
        warmup_s: Of each step; not measured.
        duration_s: Measured time of each step.
        stream: Whether calls go as messages of a stream.
        timeout_s: Of one call.
        metrics_address: Of the server's metrics port; None: no view of the server.
        ceiling: The machine, and the model's parameters; None: no roofline.
        seed: Of the times at which calls are due.
    """

    settings: ClientSettings
    calls: Sequence[Sequence[Call]] = field(repr=False)
    loads: Sequence[float]
    open_loop: bool = False
    warmup_s: float = 2.0
    duration_s: float = 10.0
    stream: bool = False
    timeout_s: float = 60.0
    metrics_address: str | None = None
    ceiling: tuple[Machine, float] | None = None
    seed: int = 0


def run_sweep(plan: Plan, report: Callable[[Row], None]) -> list[Row]:
    """One row for each load, in order; `report` is told as they come.

    Raises:
        ValueError: If the server's metrics cannot be read.
        OSError: If the load generator cannot connect.
    """
    rows = []
    # Spawned, not forked: grpc does not survive a fork, and nothing of this process is needed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(plan.calls), mp_context=context) as pool:
        list(pool.map(_import_everything, range(len(plan.calls))))
        for step, load in enumerate(plan.loads):
            rows.append(_run_step(plan, load, step, pool))
            report(rows[-1])
    return rows


def _import_everything(_: int) -> None:
    """Makes the pool start a process; importing this module is what takes time."""
    time.sleep(0.05)


def _run_step(plan: Plan, load: float, step: int, pool: ProcessPoolExecutor) -> Row:
    start = time.monotonic() + LEAD_S
    window = (start + plan.warmup_s, start + plan.warmup_s + plan.duration_s)
    parts = _shares(plan, load)
    jobs = [
        pool.submit(
            generate,
            Load(
                settings=plan.settings,
                calls=calls,
                start=start,
                stop=window[1],
                concurrency=0 if plan.open_loop else int(part),
                rate=part if plan.open_loop else 0.0,
                stream=plan.stream,
                timeout_s=plan.timeout_s,
                seed=plan.seed + 1000 * step + number,
            ),
        )
        for number, (calls, part) in enumerate(zip(plan.calls, parts, strict=True))
        if part
    ]
    view = None
    if plan.metrics_address is not None:
        _sleep_until(window[0])
        looked_at, before = time.monotonic(), scrape(plan.metrics_address)
        _sleep_until(window[1])
        after, seconds = scrape(plan.metrics_address), time.monotonic() - looked_at
        view = between(before, after, seconds)
    results: list[Outcomes] = [job.result() for job in jobs]
    return summarise(
        np.concatenate(results), load=load, window=window, server=view, ceiling=plan.ceiling
    )


def _shares(plan: Plan, load: float) -> list[float]:
    """What each process does of a load."""
    count = len(plan.calls)
    if plan.open_loop:
        return [load / count] * count
    slots = int(load)
    return [slots // count + (number < slots % count) for number in range(count)]


def _sleep_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that was started for the benchmark.

    Attributes:
        address: HOST:PORT of gRPC.
        metrics_address: HOST:PORT of its metrics.
    """

    address: str
    metrics_address: str


@contextlib.contextmanager
def serving(
    config: Path, *, scorer: str, timeout_s: float, api_key: str | None
) -> Iterator[Served]:
    """Runs `rewardsvc serve` on free ports, in a process of its own, until the block ends.

    Raises:
        ValueError: If it does not come up in time; with the end of its log.
    """
    port, metrics_port = _free_port(), _free_port()
    command = [sys.executable, "-m", "rewardsvc", "serve", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--metrics-port", str(metrics_port)]
    with tempfile.TemporaryDirectory(prefix="rewardsvc-bench-") as scratch:
        log = Path(scratch) / "server.log"
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            address = f"127.0.0.1:{port}"
            with RewardClient(address, api_key=api_key) as client:
                _wait(client, process, scorer, timeout_s)
            yield Served(address=address, metrics_address=f"127.0.0.1:{metrics_port}")
        except RewardClientError as error:
            tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:]
            raise ValueError(f"{config}: {error}\n{tail}") from None
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(
    client: RewardClient, process: subprocess.Popen[bytes], scorer: str, timeout_s: float
) -> None:
    """Waits for the scorer, but not for a process that has ended."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client.wait_until_ready(WAIT_STEP_S, scorers=[scorer])
            return
        except (DeadlineExceeded, ServiceUnavailable):
            if process.poll() is not None or time.monotonic() > deadline:
                raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
