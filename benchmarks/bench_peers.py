"""Single-sample requests at concurrency 64: this service beside the peers that pip can install.

Same random models, same requests, one client process for all. All servers run at the same time, but
those that are not being measured are stopped (SIGSTOP), so that rounds interleave and nobody loses
cores to the others. Each peer is measured with its defaults, and with the best of the settings that
were tried (`peers/servers.py`).

Peers are installed into environments of their own, in the folder `--venvs`; one that cannot be
installed or started is reported with the reason.

    python benchmarks/bench_peers.py --model bert --json benchmarks/results/bench_peers.json
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers.environments import environment
from peers.servers import (
    BEST,
    DEFAULTS,
    DOCUMENTED,
    PEERS,
    REQUIREMENTS,
    SETTINGS,
    Launcher,
    Server,
    Setting,
)
from reward_models import NAMES, texts, write_model
from rich.console import Console
from rich.table import Table
from timing import parser, surroundings

VENVS = Path.home() / ".cache" / "rewardsvc-bench"

CONCURRENCY = 64
NUM_TEXTS = 4000
"""More than are answered in a round: nothing is computed twice."""
NUM_COMPARED = 8
"""Scores of the first texts are compared between servers."""
SAME = 1e-3

START_TIMEOUT_S = 60.0
WARMUP_S = 1.0
CLIENT_SLACK_S = 90.0
"""A client that takes longer than its measurement and this is killed."""


class NotStartedError(RuntimeError):
    """A server that did not come up; the text says why."""


class ClientError(RuntimeError):
    """A measurement that came to nothing."""


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--model", choices=NAMES, default="bert")
    options.add_argument("--venvs", type=Path, default=VENVS, help="folder of the peers' venvs")
    options.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options.add_argument("--rounds", type=int, default=3, help="0: only look for best settings")
    options.add_argument("--seconds", type=float, default=5.0, help="of a measurement")
    options.add_argument("--install", action="store_true", help="make the environments and stop")
    options.add_argument(
        "--best", type=Path, help="file of the best settings: read if it is there, else written"
    )
    options.add_argument(
        "--add", action="store_true", help="rounds that --json has of this model count as well"
    )
    given = options.parse_args()
    # Servers are sessions of their own, so nobody else would end them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
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
        self._model = scratch / "model"
        self._int8 = scratch / "int8"
        self._scratch = scratch
        self._problems: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._best: dict[str, Setting] = {}
        self._texts = texts(NUM_TEXTS)
        self._console = Console(stderr=True)
        self._launcher = Launcher(scratch, self._model, self._int8)

    def run(self) -> None:
        """Installs, tunes, measures, reports."""
        self._install()
        if self._given.install:
            self._show([])
            return
        self._write_models()
        self._read_best()
        names = [name for name in self._given.only if name not in self._problems]
        for name in names:
            if name not in self._best:
                self._tune(name)
        self._write_best()
        if not self._given.rounds:
            self._show([])
            return
        servers = self._measured([name for name in names if name in self._best])
        self._compare(servers)
        rows = [self._row(server) for server in servers]
        self._show(rows)
        self._write(rows)

    def close(self) -> None:
        """Ends all servers."""
        self._launcher.end_all()

    def _install(self) -> None:
        for name, requirements in REQUIREMENTS.items():
            if name not in self._given.only:
                continue
            made = environment(self._given.venvs / name, requirements)
            self._versions[name] = made.version
            if made.python is None:
                self._problems[name] = f"not installed: {made.problem}"
            else:
                self._launcher.python[name] = made.python

    def _write_models(self) -> None:
        """Two labels, of which the second is the score: infinity serves one label as a reranker."""
        write_model(self._model, self._given.model, num_labels=2, tiny=self._given.quick)
        if "rewardsvc int8" in self._given.only:
            config = self._scratch / "export.yaml"
            section = {"type": "orm", "model": str(self._model), "label": 1}
            config.write_text(json.dumps({"scorers": {"rm": section}}))
            command = [sys.executable, "-m", "rewardsvc", "export-onnx", str(config)]
            done = subprocess.run(
                [*command, "--scorer", "rm", "--int8", "-o", str(self._int8)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                self._problems["rewardsvc int8"] = done.stderr.strip().splitlines()[-1]

    def _read_best(self) -> None:
        file = self._given.best
        if file is not None and file.is_file():
            for name, text in json.loads(file.read_text()).items():
                for setting in SETTINGS[name]:
                    if str(setting) == text:
                        self._best[name] = setting

    def _write_best(self) -> None:
        if self._given.best is not None:
            best = {name: str(setting) for name, setting in self._best.items()}
            self._given.best.write_text(json.dumps(best, indent=2) + "\n")

    def _tune(self, name: str) -> None:
        """Keeps the setting with which a server answers most."""
        settings = SETTINGS[name][:1] if self._given.quick else SETTINGS[name]
        found: list[tuple[float, Setting]] = []
        for setting in settings:
            try:
                server = self._listening(name, setting)
            except NotStartedError as problem:
                self._problems[name] = f"not started: {problem}"
                self._console.print(f"{name}, {setting}: {problem}")
                continue
            try:
                with server.awake():
                    measured = self._load(server, self._given.seconds)
            except ClientError as problem:
                self._problems[name] = str(problem)
                continue
            finally:
                server.end()
            self._console.print(f"{name}, {setting}: {measured['per_s']:.1f}/s")
            if measured["errors"]:
                self._console.print(f"  {measured['errors']} errors: {measured['first_error']}")
            found.append((measured["per_s"], setting))
        if found:
            self._best[name] = max(found, key=lambda pair: pair[0])[1]
            self._problems.pop(name, None)

    def _measured(self, names: Sequence[str]) -> list[Server]:
        """All servers, with their rounds; one that fails is left out."""
        wanted: list[tuple[str, Setting, tuple[str, ...]]] = []
        for name in names:
            for setting in SETTINGS[name]:
                kinds = tuple(kind for kind in (DEFAULTS, DOCUMENTED) if kind == setting.kind)
                kinds += (BEST,) if setting == self._best[name] else ()
                if kinds and not (self._given.quick and BEST not in kinds):
                    wanted.append((name, setting, kinds))
        # As many at a time as there are cores: more of them would not answer in time.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            started = [*pool.map(lambda one: self._tried(*one), wanted)]
        servers = [server for server in started if server is not None]
        for number in range(self._given.rounds):
            # Each round begins with another server: none is always first after a pause.
            shift = number % max(1, len(servers))
            for server in servers[shift:] + servers[:shift]:
                try:
                    with server.awake():
                        server.rounds.append(self._load(server, self._given.seconds))
                except ClientError as problem:
                    self._problems[f"{server.name}, {server.setting}"] = str(problem)
        return [server for server in servers if server.rounds]

    def _tried(self, name: str, setting: Setting, kinds: tuple[str, ...]) -> Server | None:
        try:
            server = self._listening(name, setting)
        except NotStartedError as problem:
            self._problems[f"{name}, {setting}"] = f"not started: {problem}"
            return None
        server.kinds = kinds
        return server

    def _listening(self, name: str, setting: Setting) -> Server:
        """A server that answers, stopped.

        Raises:
            NotStartedError: If it does not come up; it has been ended then.
        """
        server = self._launcher.start(name, setting)
        deadline = time.monotonic() + START_TIMEOUT_S
        problem = "it did not listen in time"
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                problem = f"it ended with status {server.process.returncode}"
                break
            try:
                # Warmed up with as many requests as are measured at a time.
                warm = self._load(server, 0.5)
            except ClientError as error:
                problem = str(error)
            else:
                if not warm["errors"]:
                    server.signal(signal.SIGSTOP)
                    return server
                problem = str(warm["first_error"])
            time.sleep(1.0)
        server.end()
        lines = server.log.read_text(errors="replace").strip().splitlines()
        raise NotStartedError(f"{problem}: {' | '.join(lines[-3:])}"[:400])

    def _load(self, server: Server, seconds: float) -> dict[str, Any]:
        """One measurement, by a client in a process of its own.

        Raises:
            ClientError: If the client fails.
        """
        order = {
            "kind": "rewardsvc" if server.name.startswith("rewardsvc") else server.name,
            "port": server.port,
            "texts": self._texts,
            "concurrency": 4 if self._given.quick else CONCURRENCY,
            "warmup_s": min(WARMUP_S, seconds / 3),
            "duration_s": seconds,
            "num_compared": NUM_COMPARED,
        }
        try:
            done = subprocess.run(
                [sys.executable, str(PEERS / "client.py")],
                input=json.dumps(order),
                capture_output=True,
                text=True,
                check=True,
                timeout=WARMUP_S + seconds + CLIENT_SLACK_S,
            )
            found: dict[str, Any] = json.loads(done.stdout)
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().splitlines()[-1:]
            raise ClientError(f"the client failed: {' '.join(last)}") from None
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise ClientError(f"the client failed: {type(error).__name__}") from None
        return found

    def _row(self, server: Server) -> dict[str, Any]:
        keys = ("per_s", "words_per_s", "p50_ms", "p99_ms")
        rounds = [{key: measured[key] for key in (*keys, "errors")} for measured in server.rounds]
        row = {
            "name": server.name,
            "model": self._given.model,
            "version": self._versions.get(server.name, ""),
            "setting": str(server.setting),
            "setting_is": ", ".join(server.kinds),
        }
        if self._given.add:
            rounds += [
                earlier
                for other in self._written()
                if all(other.get(key) == value for key, value in row.items())
                for earlier in other["rounds"]
            ]
        rates = [measured["per_s"] for measured in rounds]
        return {
            **row,
            **{key: statistics.median(measured[key] for measured in rounds) for key in keys},
            "per_s_least": min(rates),
            "per_s_most": max(rates),
            "errors": sum(measured["errors"] for measured in rounds),
            "rounds": rounds,
        }

    def _compare(self, servers: Sequence[Server]) -> None:
        """Servers that give other scores than the unbatched loop do something else."""
        reference = next((s for s in servers if s.name == "unbatched"), None)
        if reference is None:
            return
        wanted = reference.rounds[0]["first"]
        for server in servers:
            given = server.rounds[0]["first"]
            shared = wanted.keys() & given.keys()
            worst = max((abs(wanted[key] - given[key]) for key in shared), default=0.0)
            if worst > SAME and server.name != "rewardsvc int8":
                name = f"{server.name}, {server.setting}"
                self._problems[name] = f"its scores differ by {worst:.2g}"

    def _show(self, rows: Sequence[dict[str, Any]]) -> None:
        ours = next((row["per_s"] for row in rows if row["name"] == "rewardsvc"), None)
        table = Table(title=self._given.model, box=None)
        for heading in ("", "settings are", "req/s", "least", "most", "words/s", "p50", "p99"):
            table.add_column(heading, justify="right")
        table.add_column("ours is", justify="right")
        table.add_column("setting")
        for row in rows:
            keys = ("per_s", "per_s_least", "per_s_most", "words_per_s", "p50_ms", "p99_ms")
            factor = f"{ours / row['per_s']:.2f}x" if ours and row["per_s"] else ""
            numbers = (f"{row[key]:.1f}" for key in keys)
            table.add_row(row["name"], row["setting_is"], *numbers, factor, row["setting"])
        Console(width=160).print(table)
        for name, problem in self._problems.items():
            print(f"{name}: {problem}")

    def _written(self) -> list[dict[str, Any]]:
        file = self._given.json
        if file is None or not file.is_file():
            return []
        return list(json.loads(file.read_text())["rows"])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Rows of this model take the place of earlier ones; the other model's stay."""
        if self._given.json is None:
            return
        kept = [row for row in self._written() if row["model"] != self._given.model]
        problems = [
            {"name": name, "model": self._given.model, "problem": problem}
            for name, problem in self._problems.items()
        ]
        document = {**surroundings(), "concurrency": CONCURRENCY, "rows": [*kept, *rows, *problems]}
        self._given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
