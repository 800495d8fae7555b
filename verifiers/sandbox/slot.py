"""The grader's end of one slot: starts its processes, sends orders, notices when they are gone."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardsvc.verifiers.sandbox import cgroups, wire
from rewardsvc.verifiers.sandbox.boot import START_ENVIRONMENT, command
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.types import Limits, SandboxError

_START_TIMEOUT_SECONDS = 60.0
_STOP_TIMEOUT_SECONDS = 10.0
_MAX_DIAGNOSTICS_BYTES = 4000


class SlotBrokenError(Exception):
    """The slot's processes are gone, or do not answer."""


class OrderUnusedError(SlotBrokenError):
    """The slot broke before any program of the order had begun: another slot may have the order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSettings:
    """What a slot is made with.

    Attributes:
        layers: Layers of the jail.
        home: Where cgroups can be made, if they are among the layers.
        paths: What the jail shows of the host.
        python_path: Folders that Python programs import from, beside the standard library.
        preload: Modules to import beyond the usual.
        limits: Limits that the first warm child is made to.
        snapshots: Whether Python programs start from a snapshot where that can be.
    """

    layers: frozenset[Layer]
    home: cgroups.CgroupHome | None
    paths: tuple[str, ...]
    python_path: tuple[str, ...]
    preload: tuple[str, ...]
    limits: Limits
    snapshots: bool

    def as_json(self, salt: int, scratch: str) -> str:
        """For the command line of the slot's first process."""
        home = self.home
        return json.dumps(
            {
                "layers": sorted(self.layers),
                "cgroups": home
                and {"version": home.version, "memory": str(home.memory), "pids": str(home.pids)},
                "paths": self.paths,
                "python_path": self.python_path,
                "preload": self.preload,
                "limits": {
                    "disk_mib": self.limits.disk_mib,
                    "num_files": self.limits.num_files,
                },
                "snapshots": self.snapshots,
                "salt": salt,
                "scratch": scratch,
            }
        )


class Slot:
    """One slot; used by one thread at a time."""

    def __init__(self, settings: SlotSettings, salt: int) -> None:
        """Starts the slot's processes; `wait_until_ready` waits for them.

        Args:
            settings: What to make it with.
            salt: Tells the slots of this machine apart; any number.
        """
        self._settings = settings
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._diagnostics = os.memfd_create("diagnostics", os.MFD_CLOEXEC)
        self._scratch = ""
        if Layer.MOUNT_NS not in settings.layers:
            self._scratch = tempfile.mkdtemp(prefix="rewardsvc-sandbox-")
            Path(self._scratch).chmod(0o711)  # children of another user have to pass
        try:
            self._process = subprocess.Popen(
                command("image", str(theirs.fileno()), settings.as_json(salt, self._scratch)),
                env=START_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._diagnostics,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                # Not in the terminal's group: an interrupt is the grader's to handle.
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            os.close(self._diagnostics)
            raise
        finally:
            theirs.close()

    def wait_until_ready(self) -> None:
        """Waits until the first warm child stands.

        Raises:
            SandboxError: If the jail cannot be built; the slot is closed then.
        """
        try:
            self.receive(_START_TIMEOUT_SECONDS)
        except SlotBrokenError as error:
            raise SandboxError(f"the sandbox did not start: {error}") from error

    @property
    def usable(self) -> bool:
        """Whether it has not been closed."""
        return self._socket.fileno() >= 0

    @property
    def alive(self) -> bool:
        """Whether the supervisor still holds its end."""
        # An idle slot says nothing, so anything to read is the end of the stream.
        if not self.usable:
            return False
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return not poller.poll(0)

    @property
    def pid(self) -> int:
        """Of the keeper."""
        return self._process.pid

    def send(self, order: bytes, fds: Sequence[int]) -> None:
        """Sends one order; `receive` waits for what comes of it.

        Raises:
            OrderUnusedError: If the slot is gone; it is closed then.
        """
        try:
            wire.send_body(self._socket, order, fds)
        except OSError as error:
            self.close()
            raise OrderUnusedError(f"the sandbox is gone: {error}") from error

    def receive(self, timeout_seconds: float) -> tuple[dict[str, Any], list[int]]:
        """The slot's next message and its descriptors, which are the caller's.

        Raises:
            OrderUnusedError: If the slot is gone and has begun nothing; it is closed then.
            SlotBrokenError: If there is none in time, or the slot is gone; it is closed then.
        """
        self._socket.settimeout(timeout_seconds)
        try:
            reply, fds = wire.receive(self._socket)
        except TimeoutError as error:
            self.close()
            raise SlotBrokenError(f"no answer within {timeout_seconds:.0f} s") from error
        except wire.UnreadError as error:
            self.close()
            raise OrderUnusedError(f"the sandbox's processes ended: {error}") from error
        except EOFError as error:
            tail = wire.read_memory_file(self._diagnostics)[-_MAX_DIAGNOSTICS_BYTES:]
            self.close()
            raise SlotBrokenError(
                f"the sandbox's processes ended: {tail.decode(errors='replace') or 'killed'}"
            ) from error
        except BaseException:
            self.close()  # an interrupt: what the slot is about to say belongs to nobody
            raise
        if "error" in reply:  # its last words: one of its processes was killed, or never started
            self.close()
            kind = OrderUnusedError if reply.items() >= wire.UNUSED.items() else SlotBrokenError
            raise kind(f"the sandbox ended: {reply['error']}")
        return reply, fds

    def close(self) -> None:
        """Ends the slot's processes, and waits until nothing of it is left. Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        os.close(self._diagnostics)
        if os.getpid() != self._owner:
            return  # inherited by a fork: they are the parent's
        try:
            self._process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        if self._settings.home is not None:
            # The keeper has done it, unless it was killed.
            for folder in cgroups.group_folders(self._settings.home, self._process.pid):
                cgroups.remove_folder(folder)

    def abandon(self) -> None:
        """Lets go of it after a fork: closes the inherited descriptors, touches nothing else."""
        self._process.returncode = 0  # or its destructor warns that the parent's child still runs
        self.close()
