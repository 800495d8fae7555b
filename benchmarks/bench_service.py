"""What the service costs: the same scorer in process and over gRPC.

Three questions. What does a call cost (a scorer that does next to nothing: what is measured is
conversion, transport and dispatch; beside it a gRPC server that echoes bytes, which is the least
that any gRPC service on this machine costs; both over TCP and over a unix socket)? How much of the
engine's throughput is left when it is behind the service (small real models, several calls in
flight)? How long does the client take to import? The server is a process of its own, and so is the
client. gRPC's own settings in the environment reach both, and are in the rows.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from reward_models import NAMES, texts, write_model
from rich.console import Console
from rich.table import Table
from timing import Stats, interleave, parser, row, write_rows

from rewardsvc.config import load_config, parse_scorers
from rewardsvc.engine.host import EngineHost
from rewardsvc.policy_client import AsyncRewardClient, RewardClient
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring import Sample
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.scorer import Scorer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "demo"))
from service import running_service

EXACT = """
server: {{unix_socket: "{socket}"}}
scorers: {{exact: {{type: exact}}}}
"""
EXPERIMENTS = "GRPC_EXPERIMENTS"
"""The environment variable that docs/operations.md names for the lowest latency."""
SIZES = (1, 16, 256, 4096)
TEXT = "The answer to the question is forty-two, give or take. " * 4

MODEL_SIZES = (16, 64, 256)
NUM_TEXTS = 256
"""Samples of one measurement with a model; a call has one of `MODEL_SIZES` of them."""
IN_FLIGHT = 4
"""Calls in flight at a time with a model: what keeps the device busy."""
MODEL_CONFIG = """
engine: {{device: cpu, max_batch_tokens: 2048}}
scorers: {{rm: {{type: orm, model: "{folder}"}}}}
"""
MAX_DIFFERENCE = 1e-3

ECHO_SERVER = """
import asyncio, grpc, sys
async def main():
    async def echo(request, context): return request
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("echo.Echo", {"Echo": handler}),)
    )
    server.add_insecure_port("unix:" + sys.argv[1])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--calls", action="store_true", help="only the cost of a call")
    options.add_argument("--model", choices=NAMES, help="only the throughput with this model")
    options.add_argument("--rounds", type=int, default=5, help="rounds of each throughput")
    arguments = options.parse_args()
    quick = arguments.quick
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, asyncio.Runner() as runner:
        folder = Path(name)
        if arguments.model is None:
            rows += _calls(folder, runner, SIZES[:2] if quick else SIZES, 5 if quick else 200)
            rows.append(row("import rewardsvc.policy_client", _import_time(3 if quick else 10)))
        chosen = [arguments.model] if arguments.model else NAMES
        for model in [] if arguments.calls else chosen:
            rows += _throughput(folder, runner, model, 0 if quick else arguments.rounds)
    _show(rows)
    write_rows(arguments.json, rows)


def _calls(
    folder: Path, runner: asyncio.Runner, sizes: tuple[int, ...], rounds: int
) -> list[dict[str, Any]]:
    config = folder / "exact.yaml"
    socket = folder / "exact.sock"
    config.write_text(EXACT.format(socket=socket))
    rows = []
    with (
        running_service(config) as service,
        RewardClient(service.address) as over_tcp,
        RewardClient(f"unix:{socket}") as over_unix,
        _echo_server(folder / "echo.sock") as (echo_tcp, echo_unix),
    ):
        ways = {"": (echo_tcp, over_tcp), ", unix socket": (echo_unix, over_unix)}
        for size in sizes:
            some = max(5, rounds // max(1, size // 64))
            rows += _cost_of_a_call(ways, runner, size, some)
    return rows


def _cost_of_a_call(
    ways: Mapping[str, tuple[Any, RewardClient]], runner: asyncio.Runner, size: int, rounds: int
) -> list[dict[str, Any]]:
    completions = [f"{TEXT}{i}" for i in range(size)]
    scorer = scorer_class("exact")(parse_scorers("exact", {"type": "exact"})["exact"], _env())
    samples = [Sample(prompt=TEXT, completion=text, answer=text) for text in completions]
    prompts = [TEXT] * size
    payload = "".join(text + TEXT + text for text in completions).encode()
    cases: dict[str, Callable[[], object]] = {
        "in process": lambda: runner.run(scorer.score(samples))
    }
    for way, (echo, client) in ways.items():
        cases[f"bare gRPC echo{way}"] = partial(echo, payload, timeout=60)
        cases[f"over gRPC{way}"] = partial(
            client.score, "exact", prompts, completions, answers=completions
        )
    stats = interleave(cases, rounds=rounds, warmup=10)
    base = stats["in process"].median_s
    return [
        row(
            name,
            found,
            samples=size,
            extra_ms_per_call=1e3 * (found.median_s - base),
            extra_us_per_sample=1e6 * (found.median_s - base) / size,
            grpc_experiments=os.environ.get(EXPERIMENTS, ""),
        )
        for name, found in stats.items()
    ]


@contextmanager
def _echo_server(socket: Path) -> Iterator[list[Any]]:
    """A server that echoes bytes; yields the call over TCP and the call over the unix socket."""
    command = [sys.executable, "-c", ECHO_SERVER, str(socket)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        with ExitStack() as channels:
            yield [
                channels.enter_context(grpc.insecure_channel(address, options=limits)).unary_unary(
                    "/echo.Echo/Echo"
                )
                for address in (f"127.0.0.1:{port}", f"unix:{socket}")
            ]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _throughput(
    folder: Path, runner: asyncio.Runner, model: str, rounds: int
) -> list[dict[str, Any]]:
    """Rows of one model; with no rounds, one of a tiny model, to see that it works."""
    quick = not rounds
    checkpoint = write_model(folder / model, model, tiny=quick)
    config = folder / f"{model}.yaml"
    config.write_text(MODEL_CONFIG.format(folder=checkpoint))
    settings = load_config(config)
    count = 32 if quick else NUM_TEXTS
    completions = texts(count)
    rows = []

    async def start() -> tuple[EngineHost, Scorer, AsyncRewardClient]:
        engine = EngineHost(settings.engine)
        scorer = scorer_class("orm")(settings.scorers["rm"], _env(engine))
        await scorer.start()
        return engine, scorer, AsyncRewardClient(service.address, timeout_s=600.0)

    with running_service(config) as service:
        engine, scorer, client = runner.run(start())
        for size in MODEL_SIZES[:1] if quick else MODEL_SIZES:
            measured: dict[str, list[float]] = {"in process": [], "over gRPC": []}
            for round_ in range(max(1, rounds) + 1):
                ours = runner.run(_timed(lambda part: _local(scorer, part), completions, size))
                theirs = runner.run(_timed(lambda part: _remote(client, part), completions, size))
                if max(abs(a - b) for a, b in zip(ours[1], theirs[1], strict=True)) > (
                    MAX_DIFFERENCE
                ):
                    raise SystemExit("the service and the engine give different scores")
                if round_:  # the first warms up
                    measured["in process"].append(ours[0])
                    measured["over gRPC"].append(theirs[0])
            rows += _throughput_rows(model, size, count, measured)
        runner.run(_stop(engine, scorer, client))
    return rows


async def _timed(score: Any, completions: list[str], size: int) -> tuple[float, list[float]]:
    """Seconds to score all completions in calls of `size`, some in flight, and the scores."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(part: list[str]) -> list[float]:
        async with room:
            return await score(part)  # type: ignore[no-any-return]

    parts = [completions[i : i + size] for i in range(0, len(completions), size)]
    began = time.perf_counter()
    scores = await asyncio.gather(*(one(part) for part in parts))
    return time.perf_counter() - began, [value for part in scores for value in part]


async def _local(scorer: Scorer, part: list[str]) -> list[float]:
    scores = await scorer.score([Sample(completion=text) for text in part])
    return [score.value for score in scores if score.value is not None]


async def _remote(client: AsyncRewardClient, part: list[str]) -> list[float]:
    batch = await client.score("rm", [""] * len(part), part)
    return batch.values.tolist()  # type: ignore[no-any-return]


async def _stop(engine: EngineHost, scorer: Scorer, client: AsyncRewardClient) -> None:
    await client.close()
    await scorer.close()
    await engine.close()


def _throughput_rows(
    model: str, size: int, count: int, measured: dict[str, list[float]]
) -> list[dict[str, Any]]:
    shares = [a / b for a, b in zip(*measured.values(), strict=True)]
    return [
        row(
            f"{model}, {name}",
            Stats.of(seconds),
            samples=size,
            samples_per_s=count / statistics.median(seconds),
            share=statistics.median(shares) if name == "over gRPC" else None,
        )
        for name, seconds in measured.items()
    ]


def _env(engine: EngineHost | None = None) -> BuildEnv:
    def no_child(name: str) -> Any:
        raise KeyError(name)

    return BuildEnv(name="rm", base_dir=Path(), child=no_child, engine=engine or EngineHost())


def _import_time(rounds: int) -> Stats:
    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    cases = {
        "python": lambda: run("pass"),
        "client": lambda: run("import rewardsvc.policy_client"),
    }
    stats = interleave(cases, rounds=rounds, warmup=1)
    bare = stats["python"].median_s
    found = stats["client"]
    return Stats(
        median_s=found.median_s - bare,
        p20_s=found.p20_s - bare,
        p80_s=found.p80_s - bare,
        num_rounds=found.num_rounds,
    )


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    headings = (
        *("", "samples a call", "median ms", "p20", "p80"),
        *("extra ms a call", "extra us a sample", "samples/s", "of in process"),
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for found in rows:
        more = ("extra_ms_per_call", ".3f"), ("extra_us_per_sample", ".1f")
        more += ("samples_per_s", ".1f"), ("share", ".3f")
        table.add_row(
            found["name"],
            str(found.get("samples", "")),
            *(f"{1000 * found[key]:.3f}" for key in ("median_s", "p20_s", "p80_s")),
            *("" if found.get(key) is None else f"{found[key]:{form}}" for key, form in more),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
