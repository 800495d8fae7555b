"""One worker process, seen from the parent: start, talk with deadlines, kill.

The worker is a fresh interpreter on `worker.py` (exec, not fork: no locks, threads or memory of
ours) with a scrubbed environment. Frames are a length (4 bytes, big-endian) and JSON; nothing is
ever unpickled. Every read and write waits at most until its deadline.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_FRAME_BYTES = 1 << 20
_HEADER = struct.Struct(">I")
_SCRIPT = Path(__file__).with_name("worker.py")
_MIB = 1 << 20
_REAP_SECONDS = 10.0
_KEPT_ENVIRONMENT = (
    "PATH",
    "HOME",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
)
"""What finding Python's packages may take; keys and tokens stay here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """What a pool may use.

    Attributes:
        num_workers: Processes at most.
        cpu_seconds: CPU time of one comparison.
        wall_seconds: How long a comparison may take by the clock.
        queue_seconds: How long a caller waits for a free worker.
        start_seconds: How long a worker may take to import what it needs.
        memory_mib: Address space of a worker, of which about 250 MiB are taken at the start.
    """

    num_workers: int = 2
    cpu_seconds: float = 4.0
    wall_seconds: float = 40.0
    queue_seconds: float = 120.0
    start_seconds: float = 120.0
    memory_mib: int = 1024

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give more than 0")


class WorkerGoneError(Exception):
    """The worker closed its end of the pipe."""


class ServerEndedError(Exception):
    """The worker's server process ended during the request; another one is there already.

    Attributes:
        exit_code: Negative for a signal.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class DeadlineError(Exception):
    """The worker did not answer in time."""


class WorkerStartError(RuntimeError):
    """No worker can be started; the message says why and what to install."""


class Worker:
    """A running worker; used by one thread at a time, but for `stop`."""

    def __init__(self, limits: PoolLimits) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # the folder of the script must not shadow the standard library's `math`
                str(_SCRIPT),
                str(limits.memory_mib * _MIB),
                str(limits.cpu_seconds),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        try:
            ready = self.receive(time.monotonic() + limits.start_seconds)
        except (WorkerGoneError, ServerEndedError, DeadlineError, ValueError) as error:
            self.kill()
            raise WorkerStartError(f"a worker did not start: {error}") from error
        except BaseException:
            self.kill()
            raise
        if not ready.get("ready"):
            self.kill()
            raise WorkerStartError(
                f"Math-Verify does not import: {ready.get('error')}; pip install 'rewardsvc[math]'"
            )

    def send(self, message: dict[str, object], deadline: float) -> None:
        data = json.dumps(message).encode()  # ASCII, so lone surrogates survive
        view = memoryview(_HEADER.pack(len(data)) + data)
        while view:
            self._wait(self._stdin.fileno(), select.POLLOUT, deadline)
            try:
                view = view[os.write(self._stdin.fileno(), view) :]
            except BrokenPipeError as error:
                raise WorkerGoneError("it closed its input") from error

    def receive(self, deadline: float) -> dict[str, Any]:
        (length,) = _HEADER.unpack(self._read(_HEADER.size, deadline))
        if length > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {length} bytes")
        message = json.loads(self._read(length, deadline))
        if not isinstance(message, dict):
            raise ValueError("a frame that is no object")
        if "ended" in message:
            raise ServerEndedError(int(message["ended"]))
        return message

    def is_quiet(self) -> bool:
        """Whether it lives and nothing was sent unasked, as when its server was killed idle."""
        if self._process.poll() is not None:
            return False
        poll = select.poll()
        poll.register(self._stdout.fileno(), select.POLLIN)
        return not poll.poll(0)

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        data = b""
        while len(data) < num_bytes:
            self._wait(self._stdout.fileno(), select.POLLIN, deadline)
            part = os.read(self._stdout.fileno(), num_bytes - len(data))
            if not part:
                raise WorkerGoneError("it ended")
            data += part
        return data

    @staticmethod
    def _wait(descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise DeadlineError("it did not answer in time")

    def stop(self) -> None:
        """Ends it at once; whoever waits for its answer finds that it ended, and calls `kill`."""
        self._end_group()

    def kill(self) -> None:
        """Ends it at once and frees its pipes."""
        self._end_group()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel; the parent need not be
            self._process.wait(_REAP_SECONDS)
        self._close_pipes()

    def _end_group(self) -> None:
        """Kills the worker and the child that serves, whose end of the pipe stays open else."""
        if self._process.poll() is None:  # or its id may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def abandon(self) -> None:
        """In a child of fork(): lets go of a process that is the parent's."""
        self._close_pipes()
        self._process.returncode = 0  # or Popen would warn that it was never waited for

    def _close_pipes(self) -> None:
        self._stdin.close()
        self._stdout.close()
