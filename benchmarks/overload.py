"""What the service does under more load than it can serve: two minutes of everything at once.

64 clients, each with a name of its own, in a process of their own. A few are greedy (large calls,
one after another, without a pause), the others send a few samples at a time. Together they offer
five times what the model can compute. Calls are cancelled at random, have deadlines of all
lengths, and hold poison: samples that make the model give NaN, and samples that are too long. All
the while the model is reloaded, its weights alternating between two checkpoints.

Checked, for every call: its answer is right, that is: every value is the one that transformers
computes for that sample with the weights of the version in the reply, or the error that the sample
deserves; or it ended with a status that says why. And: every client got answers; answers came
within their deadlines; the server's memory did not grow. Exits with 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import psutil
import torch
import transformers
from overload_report import (
    DEADLINE_SLACK_S,
    LONG_RUN_S,
    MAX_LENGTH,
    NUM_GREEDY,
    POISON_LONG,
    POISON_NAN,
    Known,
    Load,
    Tally,
    mistakes,
    report_of,
)
from timing import surroundings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_models

from rewardsvc.v1 import admin_pb2, admin_pb2_grpc, reward_pb2_grpc
from rewardsvc.v1 import reward_pb2 as pb

NUM_CLIENTS, GREEDY_CALLS = 64, 8
"""Clients; and how many calls each of the greedy ones has in flight."""

NUM_TEXTS, FEW_TEXTS = 6000, 600
"""Samples to choose from: the more, the fewer are in flight twice. Few for a short run."""

TIMES_CAPACITY = 5.0

CLEAR = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
REFERENCE_ROWS = 100
START_TIMEOUT_S = 120.0


def main() -> None:
    """Runs it and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument(
        "--times",
        type=float,
        default=TIMES_CAPACITY,
        help="samples that are offered, as a multiple of the capacity; 0: as many as clients can",
    )
    parser.add_argument("--replicas", type=int, default=0, help="worker processes; 0: none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(_run(Path(folder), arguments))
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps({**surroundings(), **report}, indent=2) + "\n")
    sys.exit(1 if report["failures"] else 0)


async def _run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    random.seed(0)
    seconds: float = arguments.seconds
    texts = _texts(NUM_TEXTS if seconds >= LONG_RUN_S else FEW_TEXTS)
    scores = [_checkpoint(folder / name, seed, texts) for seed, name in enumerate("ab")]
    server = _start_server(folder, arguments.replicas)
    try:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        async with channel:
            rewards = reward_pb2_grpc.RewardServiceStub(channel)
            admin = admin_pb2_grpc.AdminServiceStub(channel)
            versions = []
            for name in "ba":  # ends with the weights that the server began with
                _use(folder, name)
                reply = await admin.ReloadScorer(
                    admin_pb2.ReloadScorerRequest(name="rm"), timeout=START_TIMEOUT_S
                )
                versions.append(reply.scorer.version)
            known = Known(texts, {versions[1]: scores[0], versions[0]: scores[1]})
            capacity = await _capacity(rewards, known)
            load = Load(seconds=seconds, capacity=capacity, times=arguments.times)
            return await _overload(folder, server, rewards, admin, known, load)
    finally:
        server.stop()


def _texts(count: int) -> list[str]:
    letters = "abcdefghij "
    return [
        f"{i} " + "".join(random.choice(letters) for _ in range(random.randint(5, 100)))
        for i in range(count)
    ]


@torch.inference_mode()
def _checkpoint(folder: Path, seed: int, texts: list[str]) -> dict[str, float]:
    """Writes a model that gives NaN for the poison, and tells what it gives for the texts."""

    def poisoned(model: Any) -> None:
        model.get_input_embeddings().weight[tiny_models.VOCAB[POISON_NAN]] = math.nan

    tiny_models.write_reward_model(
        folder, "llama", seed=seed, change=poisoned, hidden_size=64, num_hidden_layers=4
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scores: dict[str, float] = {}
    for start in range(0, len(texts), REFERENCE_ROWS):
        rows = texts[start : start + REFERENCE_ROWS]
        inputs = tokenizer(rows, return_tensors="pt", padding=True, padding_side="right")
        scores |= zip(rows, model(**inputs).logits[:, 0].tolist(), strict=True)
    return scores


def _use(folder: Path, name: str) -> None:
    """Makes one of the checkpoints the one that is served next."""
    link = folder / "next"
    link.unlink(missing_ok=True)
    link.symlink_to(folder / name)
    link.rename(folder / "current")


class _Server:
    """`rewardsvc serve` in a process of its own."""

    def __init__(self, config: Path, port: int) -> None:
        self.port = port
        self.log = (config.parent / "server.log").open("w")
        command = [sys.executable, "-m", "rewardsvc", "serve", str(config), "--port", str(port)]
        self.process = subprocess.Popen(command, stderr=self.log)

    def rss_mib(self) -> float:
        """Memory of the process and its workers."""
        front = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [front, *front.children(recursive=True)]) / 2**20

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(START_TIMEOUT_S)
        finally:
            self.process.kill()
            self.log.close()


def _start_server(folder: Path, replicas: int) -> _Server:
    import socket

    _use(folder, "a")
    model: dict[str, Any] = {
        "type": "orm", "model": str(folder / "current"), "max_length": MAX_LENGTH
    }  # fmt: skip
    if replicas:
        model["replicas"] = replicas
    config = folder / "service.yaml"
    config.write_text(
        json.dumps(
            {
                "server": {"port": 0, "admin": {"enabled": True}},
                "engine": {
                    "device": "cpu",
                    "num_torch_threads": 1,
                    "max_batch_tokens": 2048,
                    "max_queue_items": 2048,
                    "max_queue_tokens": 131_072,
                },
                "scorers": {"rm": model},
            }
        )
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = _Server(config, port)
    ends_at = time.monotonic() + START_TIMEOUT_S
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        while True:
            try:
                info = stub.GetServerInfo(
                    pb.GetServerInfoRequest(), timeout=5.0, wait_for_ready=True
                )
                if info.scorers and info.scorers[0].state == pb.SCORER_STATE_READY:
                    return server
            except grpc.RpcError:
                pass
            if time.monotonic() > ends_at or server.process.poll() is not None:
                server.stop()
                raise RuntimeError((folder / "server.log").read_text())
            time.sleep(0.1)


def _request(texts: list[str], client: str) -> pb.ScoreRequest:
    samples = [pb.Sample(prompt_text="", completion_text=text) for text in texts]
    return pb.ScoreRequest(scorer="rm", samples=samples, client_id=client)


async def _capacity(rewards: Any, known: Known) -> float:
    """Samples a second that the service computes when nobody asks for more."""
    for _ in range(2):  # the first warms up
        began = time.monotonic()
        # Full calls with every text once: identical samples in flight would be computed once.
        await rewards.Score(_request(known.texts, "capacity"), timeout=START_TIMEOUT_S)
    return len(known.texts) / (time.monotonic() - began)


async def _overload(
    folder: Path,
    server: _Server,
    rewards: Any,
    admin: Any,
    known: Known,
    load: Load,
) -> dict[str, Any]:
    seconds = load.seconds
    tallies = {f"client-{i}": Tally() for i in range(NUM_CLIENTS)}
    ends_at = time.monotonic() + seconds
    rss: list[float] = []
    offered, num_reloads = Counter[str](), 0

    async def ask(client: str, number: int, rng: random.Random) -> None:
        greedy = number < NUM_GREEDY
        size = rng.choice([128, 256]) if greedy else rng.choice([1, 1, 4, 16])
        texts = [rng.choice(known.texts) for _ in range(size)]
        for at in range(size):
            if rng.random() < 0.02:
                texts[at] = rng.choice([POISON_NAN, POISON_LONG])
        await load.turn(size)
        if time.monotonic() >= ends_at:
            return
        deadline_s = rng.choice([0.05, 0.5, 2.0, 5.0, 10.0])
        offered[client] += size
        began = time.monotonic()
        call = rewards.Score(_request(texts, client), timeout=deadline_s)
        cancel = None
        if rng.random() < 0.1:
            cancel = asyncio.get_running_loop().call_later(rng.random() * deadline_s, call.cancel)
        tally = tallies[client]
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            tally.statuses[error.code().name] += 1
            if error.code() not in CLEAR:
                tally.wrong.append(f"{error.code().name}: {error.details()}")
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                delays = [v for k, v in error.trailing_metadata() or () if k == "retry-delay-ms"]
                if len(delays) != 1:
                    tally.wrong.append("refused without a retry delay")
                await asyncio.sleep(min(0.05, int(delays[0]) / 1000) if delays else 0.05)
            return
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            tally.statuses["CANCELLED"] += 1
            return
        finally:
            if cancel is not None:
                cancel.cancel()
        took_s = time.monotonic() - began
        tally.answered += 1
        tally.samples += size
        tally.shares.append(took_s / deadline_s)
        tally.late += took_s > deadline_s + DEADLINE_SLACK_S
        tally.wrong += mistakes(reply.batch, texts, known)

    async def client(name: str, number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < ends_at:
            await ask(name, number, rng)
            if number >= NUM_GREEDY:
                await asyncio.sleep(rng.expovariate(10.0))

    async def reload() -> None:
        nonlocal num_reloads
        while time.monotonic() < ends_at:
            _use(folder, "ba"[num_reloads % 2])
            await admin.ReloadScorer(
                admin_pb2.ReloadScorerRequest(name="rm"), timeout=START_TIMEOUT_S
            )
            num_reloads += 1
            await asyncio.sleep(min(2.0, seconds / 10))

    async def watch() -> None:
        while time.monotonic() < ends_at:
            rss.append(server.rss_mib())
            await asyncio.sleep(min(0.5, seconds / 20))

    async with asyncio.TaskGroup() as tasks:
        for number, name in enumerate(tallies):
            for _ in range(GREEDY_CALLS if number < NUM_GREEDY else 1):
                tasks.create_task(client(name, number))
        tasks.create_task(reload())
        tasks.create_task(watch())
    return report_of(tallies, offered, rss, num_reloads, load)


if __name__ == "__main__":
    main()
