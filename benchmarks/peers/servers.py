"""The servers under test: what each is told, how it is started, stopped and ended.

Settings come in three kinds. *Defaults*: nothing is said but model and port, which is what somebody
gets who installs it and follows its first page. *Documented batching*, where batching is off until
it is asked for: the values of its own documentation's example. All others are tried, and the best
of all is measured as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent

DEFAULTS, DOCUMENTED, BEST = "defaults", "documented batching", "best"

TERMINATE_S, KILL_S = 2.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way to run a server.

    Attributes:
        threads: Of a forward pass.
        options: Of its command line.
        kind: `DEFAULTS`, `DOCUMENTED` or neither.
    """

    threads: int = 2
    options: tuple[str, ...] = ()
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.threads} threads {' '.join(self.options)}".strip()


def _batches(*sizes_and_waits_ms: tuple[int, int]) -> tuple[Setting, ...]:
    return tuple(
        Setting(options=("--batch", str(size), "--wait-ms", str(wait)))
        for size, wait in sizes_and_waits_ms
    )


REQUIREMENTS: dict[str, list[str]] = {
    "unbatched": ["fastapi", "uvicorn", "transformers"],
    "infinity": ["infinity-emb[torch,server]"],
    "litserve": ["litserve", "transformers"],
    "pytriton": ["nvidia-pytriton", "transformers"],
}
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "rewardsvc": (Setting(kind=DEFAULTS), Setting(threads=1)),
    "rewardsvc int8": (Setting(kind=DEFAULTS), Setting(threads=1)),
    "unbatched": (Setting(kind=DEFAULTS), Setting(threads=1)),
    "infinity": (
        Setting(kind=DEFAULTS),
        *(
            Setting(options=("--batch-size", size, "--dtype", "float32", "--no-bettertransformer"))
            for size in ("1", "4", "8")
        ),
    ),
    "litserve": (
        Setting(kind=DEFAULTS),
        Setting(kind=DOCUMENTED, options=("--batch", "8", "--wait-ms", "100")),
        *_batches((4, 5), (16, 5)),
    ),
    "pytriton": (Setting(kind=DEFAULTS), *_batches((1, 0), (16, 5))),
}
"""What each tries; the first is its defaults. Two cores: a batch of one is on the list wherever a
peer can be told so (it is LitServe's default; PyTriton's is 4, infinity's 32)."""


@dataclass(slots=True, kw_only=True)
class Server:
    """A running server, stopped unless it is being measured.

    Attributes:
        name: A key of `SETTINGS`.
        setting: How it runs.
        kinds: What the setting is: of `DEFAULTS`, `DOCUMENTED`, `BEST`.
        process: Its process, the leader of a group.
        port: Where it listens.
        log: What it says.
        rounds: What was measured.
    """

    name: str
    setting: Setting
    kinds: tuple[str, ...] = ()
    process: subprocess.Popen[bytes]
    port: int
    log: Path
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
        """Ends it and what it started; may be called again."""
        for number, patience_s in ((signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, KILL_S)):
            self.signal(signal.SIGCONT)
            self.signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)


class Launcher:
    """Starts servers, and knows all that it ever started.

    Args:
        scratch: A folder for logs and configurations.
        model: The checkpoint that all serve.
        int8: Its export for "rewardsvc int8".
    """

    def __init__(self, scratch: Path, model: Path, int8: Path) -> None:
        self.python: dict[str, Path] = {}
        self._scratch = scratch
        self._model = model
        self._int8 = int8
        self._started: list[Server] = []

    def start(self, name: str, setting: Setting) -> Server:
        """The server, which does not listen yet."""
        port = _free_port()
        log = self._scratch / f"{name.replace(' ', '-')}-{port}.log"
        command = self._command(name, setting, port)
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env=self._environment(setting),
                start_new_session=True,
                cwd=self._scratch,
            )
        server = Server(name=name, setting=setting, process=process, port=port, log=log)
        self._started.append(server)
        return server

    def end_all(self) -> None:
        """Ends whatever was started: asks all at once, and kills what has not gone by then."""
        for server in self._started:
            server.signal(signal.SIGCONT)
            server.signal(signal.SIGTERM)
        patience_ends = time.monotonic() + TERMINATE_S
        for server in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(max(0.0, patience_ends - time.monotonic()))
        for server in self._started:
            server.signal(signal.SIGKILL)
        for server in self._started:
            server.process.wait(KILL_S)

    def _environment(self, setting: Setting) -> dict[str, str]:
        found = {
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
        found.pop("PYTHONPATH", None)
        return found

    def _command(self, name: str, setting: Setting, port: int) -> list[str]:
        if name.startswith("rewardsvc"):
            return self._our_command(name, setting, port)
        python = self.python[name]
        if name == "infinity":
            command = [str(python.parent / "infinity_emb"), "v2", "--host", "127.0.0.1"]
            command += ["--model-id", str(self._model), "--served-model-name", "reward"]
            command += ["--device", "cpu", "--log-level", "warning"]
            return [*command, "--port", str(port), *setting.options]
        return [str(python), str(PEERS / f"serve_{name}.py"), "--port", str(port), *setting.options]

    def _our_command(self, name: str, setting: Setting, port: int) -> list[str]:
        section: dict[str, Any] = {"type": "orm", "model": str(self._model), "label": 1}
        if name == "rewardsvc int8":
            section |= {"model": str(self._int8), "backend": "onnx"}
        config = self._scratch / f"{name.replace(' ', '-')}-{port}.yaml"
        engine = {"device": "cpu", "num_torch_threads": setting.threads}
        config.write_text(json.dumps({"engine": engine, "scorers": {"rm": section}}))
        command = [sys.executable, "-m", "rewardsvc", "serve", str(config)]
        return [*command, "--port", str(port)]


def _free_port() -> int:
    """A port with two free ones behind it, as far as one can tell."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
