"""Single-sample requests at concurrency 64: this service beside the peers that pip can install.

Same random models, same requests, one client process for all. All servers run at the same time, but
those that are not being measured are stopped (SIGSTOP), so that rounds interleave and nobody loses
cores to the others. Each server first tries its settings (`SETTINGS`), and goes on with its best.

Peers are installed into environments of their own, in the folder `--venvs`; one that cannot be
installed or started is reported with the reason.

    python benchmarks/bench_peers.py --model bert --json benchmarks/results/bench_peers.json
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.environments import environment
from reward_models import NAMES, texts, write_model
from rich.console import Console
from rich.table import Table
from timing import parser, surroundings

HERE = Path(__file__).parent
PEERS = HERE / "peers"
VENVS = Path.home() / ".cache" / "rewardsvc-bench"

CONCURRENCY = 64
NUM_TEXTS = 4000
"""More than are answered in a round: nothing is computed twice."""
NUM_COMPARED = 8
"""Scores of the first texts are compared between servers."""
SAME = 1e-3

START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way to run a server.

    Attributes:
        threads: Of a forward pass.
        options: Of its command line.
    """

    threads: int
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.threads} threads {' '.join(self.options)}".strip()


def _batches(*sizes: int, waits_ms: tuple[int, ...] = (5,)) -> tuple[Setting, ...]:
    return tuple(
        Setting(threads=2, options=("--batch", str(size), "--wait-ms", str(wait)))
        for size in sizes
        for wait in (waits_ms if size > 1 else (0,))
    )


REQUIREMENTS: dict[str, list[str]] = {
    "unbatched": ["fastapi", "uvicorn", "transformers"],
    "infinity": ["infinity-emb[torch,server]"],
    "litserve": ["litserve", "transformers"],
    "pytriton": ["nvidia-pytriton", "transformers"],
}
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "rewardsvc": (Setting(threads=1), Setting(threads=2)),
    "rewardsvc int8": (Setting(threads=1), Setting(threads=2)),
    "unbatched": (Setting(threads=1), Setting(threads=2)),
    "infinity": tuple(
        Setting(threads=2, options=("--batch-size", size)) for size in ("4", "8", "32")
    ),
    "litserve": _batches(1, 4, 16),
    "pytriton": _batches(1, 4, 16),
}
"""What each tries. Two cores: a batch of one is on the list wherever a peer can be told so."""


@dataclass(slots=True, kw_only=True)
class Server:
    """A running server, stopped unless it is being measured.

    Attributes:
        name: A key of `SETTINGS`.
        setting: How it runs.
        process: Its process, the leader of a group.
        port: Where it listens.
        rounds: What was measured.
    """

    name: str
    setting: Setting
    process: subprocess.Popen[bytes]
    port: int
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def signal(self, number: signal.Signals) -> None:
        """To the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Running within the block, stopped after it."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def end(self) -> None:
        """Ends it and what it started."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.signal(signal.SIGKILL)
        self.process.wait(5)


class NotStartedError(RuntimeError):
    """A server that did not come up; the text says why."""


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--model", choices=NAMES, default="bert")
    options.add_argument("--venvs", type=Path, default=VENVS, help="folder of the peers' venvs")
    options.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=5.0, help="of a measurement")
    options.add_argument("--install", action="store_true", help="make the environments and stop")
    options.add_argument(
        "--best", type=Path, help="file of the best settings: read if it is there, else written"
    )
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="rewardsvc-peers-") as scratch:
        bench = Bench(given, Path(scratch))
        try:
            bench.run()
        finally:
            bench.close()


class Bench:
    """One run."""

    def __init__(self, given: Any, scratch: Path) -> None:
        self._given = given
        self._scratch = scratch
        self._problems: dict[str, str] = {}
        self._python: dict[str, Path] = {}
        self._versions: dict[str, str] = {}
        self._best: dict[str, Setting] = {}
        self._servers: list[Server] = []
        self._texts = texts(NUM_TEXTS)
        self._console = Console(stderr=True)

    def run(self) -> None:
        """Installs, tunes, measures, reports."""
        self._install()
        if self._given.install:
            self._show([])
            return
        self._models()
        self._read_best()
        names = [name for name in self._given.only if name not in self._problems]
        for name in names:
            if name not in self._best:
                self._tune(name)
        self._write_best()
        best = [(name, self._best[name]) for name in names if name in self._best]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda pair: self._add(*pair), best))
        self._servers.sort(key=lambda server: names.index(server.name))
        for number in range(self._given.rounds):
            # Each round begins with another server: none is always first after a pause.
            shift = number % max(1, len(self._servers))
            for server in self._servers[shift:] + self._servers[:shift]:
                with server.awake():
                    server.rounds.append(self._load(server, self._given.seconds))
        rows = [self._row(server) for server in self._servers]
        self._compare()
        self._show(rows)
        self._write(rows)

    def _add(self, name: str, setting: Setting) -> None:
        try:
            self._servers.append(self._start(name, setting))
        except NotStartedError as problem:
            self._problems[name] = f"not started: {problem}"

    def close(self) -> None:
        """Ends all servers."""
        for server in self._servers:
            server.end()

    def _install(self) -> None:
        for name, requirements in REQUIREMENTS.items():
            if name not in self._given.only:
                continue
            made = environment(self._given.venvs / name, requirements)
            self._versions[name] = made.version
            if made.python is None:
                self._problems[name] = f"not installed: {made.problem}"
            else:
                self._python[name] = made.python

    def _models(self) -> None:
        """Two labels, of which the second is the score: infinity serves one label as a reranker."""
        tiny = self._given.quick
        model = write_model(self._scratch / "model", self._given.model, num_labels=2, tiny=tiny)
        self._model = model
        if "rewardsvc int8" in self._given.only:
            folder = self._scratch / "int8"
            config = self._scratch / "export.yaml"
            section = {"type": "orm", "model": str(model), "label": 1}
            config.write_text(json.dumps({"scorers": {"rm": section}}))
            command = [sys.executable, "-m", "rewardsvc", "export-onnx", str(config)]
            done = subprocess.run(
                [*command, "--scorer", "rm", "--int8", "-o", str(folder)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                self._problems["rewardsvc int8"] = done.stderr.strip().splitlines()[-1]

    def _read_best(self) -> None:
        file = self._given.best
        if file is not None and file.is_file():
            for name, setting in json.loads(file.read_text()).items():
                self._best[name] = Setting(
                    threads=setting["threads"], options=tuple(setting["options"])
                )

    def _write_best(self) -> None:
        if self._given.best is not None:
            best = {
                name: {"threads": setting.threads, "options": setting.options}
                for name, setting in self._best.items()
            }
            self._given.best.write_text(json.dumps(best, indent=2) + "\n")

    def _tune(self, name: str) -> None:
        """Keeps the setting with which a server answers most."""
        settings = SETTINGS[name][:1] if self._given.quick else SETTINGS[name]
        found: list[tuple[float, Setting]] = []
        for setting in settings:
            try:
                server = self._start(name, setting)
            except NotStartedError as problem:
                self._problems[name] = f"not started: {problem}"
                continue
            try:
                with server.awake():
                    measured = self._load(server, self._given.seconds)
            finally:
                server.end()
            self._console.print(f"{name}, {setting}: {measured['per_s']:.1f}/s")
            if measured["errors"]:
                self._console.print(f"  {measured['errors']} errors: {measured['first_error']}")
            found.append((measured["per_s"], setting))
        if found:
            self._best[name] = max(found, key=lambda pair: pair[0])[1]
            self._problems.pop(name, None)

    def _start(self, name: str, setting: Setting) -> Server:
        port = _free_port()
        log = self._scratch / f"{name.replace(' ', '-')}.log"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(setting.threads),
            "MKL_NUM_THREADS": str(setting.threads),
            "PEER_THREADS": str(setting.threads),
            "PEER_MODEL": str(self._model),
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment.pop("PYTHONPATH", None)
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._command(name, setting, port),
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                cwd=self._scratch,
            )
        server = Server(name=name, setting=setting, process=process, port=port)
        deadline = time.monotonic() + START_TIMEOUT_S
        problem = "it did not listen in time"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                problem = f"it ended with status {process.returncode}"
                break
            try:
                # Warmed up with as many requests as are measured at a time.
                warm = self._load(server, 0.5)
                if not warm["errors"]:
                    server.signal(signal.SIGSTOP)
                    return server
                problem = str(warm["first_error"])
            except subprocess.CalledProcessError as error:
                problem = str(error)
            time.sleep(1.0)
        server.end()
        lines = log.read_text(errors="replace").strip().splitlines()
        raise NotStartedError(f"{problem}: {' | '.join(lines[-3:])}"[:400])

    def _command(self, name: str, setting: Setting, port: int) -> list[str]:
        if name.startswith("rewardsvc"):
            return self._our_command(name, setting, port)
        python = self._python[name]
        if name == "infinity":
            command = [str(python.parent / "infinity_emb"), "v2", "--host", "127.0.0.1"]
            command += ["--model-id", str(self._model), "--served-model-name", "reward"]
            command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32"]
            command += ["--no-bettertransformer", "--log-level", "warning"]
            return [*command, "--port", str(port), *setting.options]
        return [str(python), str(PEERS / f"serve_{name}.py"), "--port", str(port), *setting.options]

    def _our_command(self, name: str, setting: Setting, port: int) -> list[str]:
        section: dict[str, Any] = {"type": "orm", "model": str(self._model), "label": 1}
        if name == "rewardsvc int8":
            section |= {"model": str(self._scratch / "int8"), "backend": "onnx"}
        config = self._scratch / f"{name.replace(' ', '-')}-{port}.yaml"
        engine = {"device": "cpu", "num_torch_threads": setting.threads}
        config.write_text(json.dumps({"engine": engine, "scorers": {"rm": section}}))
        command = [sys.executable, "-m", "rewardsvc", "serve", str(config)]
        return [*command, "--port", str(port)]

    def _load(self, server: Server, seconds: float) -> dict[str, Any]:
        """One measurement, by a client in a process of its own."""
        order = {
            "kind": "rewardsvc" if server.name.startswith("rewardsvc") else server.name,
            "port": server.port,
            "texts": self._texts,
            "concurrency": 4 if self._given.quick else CONCURRENCY,
            "warmup_s": min(1.0, seconds / 3),
            "duration_s": seconds,
            "num_compared": NUM_COMPARED,
        }
        done = subprocess.run(
            [sys.executable, str(PEERS / "client.py")],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _row(self, server: Server) -> dict[str, Any]:
        def median(key: str) -> float:
            return statistics.median(measured[key] for measured in server.rounds)

        rates = [measured["per_s"] for measured in server.rounds]
        return {
            "name": server.name,
            "model": self._given.model,
            "version": self._versions.get(server.name, ""),
            "setting": str(server.setting),
            "per_s": median("per_s"),
            "per_s_least": min(rates),
            "per_s_most": max(rates),
            "words_per_s": median("words_per_s"),
            "p50_ms": median("p50_ms"),
            "p99_ms": median("p99_ms"),
            "errors": sum(measured["errors"] for measured in server.rounds),
            "num_rounds": len(rates),
        }

    def _compare(self) -> None:
        """Servers that give other scores than the unbatched loop do something else."""
        reference = next((s for s in self._servers if s.name == "unbatched"), None)
        if reference is None:
            return
        wanted = reference.rounds[0]["first"]
        for server in self._servers:
            given = server.rounds[0]["first"]
            shared = wanted.keys() & given.keys()
            worst = max((abs(wanted[key] - given[key]) for key in shared), default=0.0)
            if worst > SAME and server.name != "rewardsvc int8":
                self._problems[server.name] = f"its scores differ by {worst:.2g}"

    def _show(self, rows: list[dict[str, Any]]) -> None:
        ours = next((row["per_s"] for row in rows if row["name"] == "rewardsvc"), None)
        table = Table(title=self._given.model, box=None)
        for heading in ("", "version", "req/s", "least", "most", "words/s", "p50 ms", "p99 ms"):
            table.add_column(heading, justify="right")
        table.add_column("ours is", justify="right")
        table.add_column("setting")
        for row in rows:
            keys = ("per_s", "per_s_least", "per_s_most", "words_per_s", "p50_ms", "p99_ms")
            factor = f"{ours / row['per_s']:.2f}x" if ours and row["per_s"] else ""
            numbers = (f"{row[key]:.1f}" for key in keys)
            table.add_row(row["name"], row["version"], *numbers, factor, row["setting"])
        Console().print(table)
        for name, problem in self._problems.items():
            print(f"{name}: {problem}")

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Rows of this model take the place of earlier ones; the other model's stay."""
        file = self._given.json
        if file is None:
            return
        kept: list[dict[str, Any]] = []
        if file.is_file():
            kept = [
                r for r in json.loads(file.read_text())["rows"] if r["model"] != rows[0]["model"]
            ]
        problems = [
            {"name": name, "model": self._given.model, "problem": problem}
            for name, problem in self._problems.items()
        ]
        document = {**surroundings(), "concurrency": CONCURRENCY, "rows": [*kept, *rows, *problems]}
        file.write_text(json.dumps(document, indent=2) + "\n")


def _free_port() -> int:
    """A port with two free ones behind it, as far as one can tell."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
