"""One run, as the grader puts it together and as the supervisor answers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from rewardsvc.verifiers.sandbox import wire
from rewardsvc.verifiers.sandbox.types import Limits, RunResult, RunStatus

_MAX_PATH_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one child is to do.

    Attributes:
        kind: "python", or "exec" for everything else.
        mode: Of the harness ("script", "calls", "serve", "judge"); unused by "exec".
        sources: Texts that the mode takes, such as "code".
        settings: What else the mode takes; for "exec", "argv" and "env".
        files: Placed in the working folder, by relative path.
        fetch: Names to bring back; `*` stands for any part of a name.
        limits: What it may use.
        stdin: What the program reads; ignored if `stdin_fd` is given.
        stdin_fd, stdout_fd: Descriptors to use instead of memory files; the caller's to close.
        extra_fds: Descriptors of the mode; the caller's to close.
    """

    kind: str = "python"
    mode: str = "script"
    sources: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    fetch: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    stdin: bytes = b""
    stdin_fd: int = -1
    stdout_fd: int = -1
    extra_fds: Sequence[int] = ()

    @property
    def passed_fds(self) -> list[int]:
        """Descriptors that the caller has opened."""
        return [fd for fd in (self.stdin_fd, self.stdout_fd, *self.extra_fds) if fd >= 0]

    def order(self) -> bytes:
        """The message that goes to the supervisor."""
        return _encode_order(self.kind, tuple(self.fetch), self.limits)

    def payload(self) -> int:
        """A memory file with all that only the child needs to know; its descriptor."""
        blobs = [text.encode("utf-8", "surrogatepass") for text in self.sources.values()]
        head = {
            "mode": self.mode,
            "settings": self.settings,
            "piped": self.stdin_fd >= 0 or self.stdout_fd >= 0,
            "sources": [(name, len(blob)) for name, blob in zip(self.sources, blobs, strict=True)],
            "files": [(check_path(path), len(content)) for path, content in self.files.items()],
        }
        return wire.pack(head, [*blobs, *self.files.values()])


@functools.lru_cache(maxsize=64)
def _encode_order(kind: str, fetch: tuple[str, ...], limits: Limits) -> bytes:
    """Orders differ in little else than their payloads, so the same few come again and again."""
    return wire.encode(
        {
            "kind": kind,
            "fetch": fetch,
            "limits": {
                "cpu_ms": limits.cpu_ms,
                "wall_ms": limits.elapsed_ms,
                "memory_mib": limits.memory_mib,
                "output_bytes": limits.output_bytes,
                "num_processes": limits.num_processes,
                "disk_mib": limits.disk_mib,
                "num_files": limits.num_files,
            },
        }
    )


def check_path(path: str) -> str:
    """`path`, if it is relative and stays in the folder it starts in.

    Raises:
        ValueError: If it does not.
    """
    parts = PurePosixPath(path).parts
    plain = parts and not path.startswith("/") and ".." not in parts and "\0" not in path
    if not plain or len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ValueError(f"file name {path[:300]!r} is not a path within the working folder")
    return path


class OpenJob:
    """The descriptors of one job; closes those that it opened itself."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._own: list[int] = []
        try:
            payload = self._keep(job.payload())
            stdin = job.stdin_fd
            if stdin < 0:
                stdin = self._keep(wire.memory_file(job.stdin))
            self._stdout = self._keep(os.memfd_create("stdout", os.MFD_CLOEXEC))
            self._stderr = self._keep(os.memfd_create("stderr", os.MFD_CLOEXEC))
            stdout = self._stdout if job.stdout_fd < 0 else job.stdout_fd
            self.fds = [payload, stdin, stdout, self._stderr, *job.extra_fds]
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> int:
        self._own.append(fd)
        return fd

    def result(self, reply: Mapping[str, Any], fds: Sequence[int]) -> RunResult:
        """What the supervisor's answer says, with the output beside it."""
        limit = self._job.limits.output_bytes
        stdout = wire.read_memory_file(self._stdout, limit + 1)
        stderr = wire.read_memory_file(self._stderr, limit + 1)
        too_much = max(len(stdout), len(stderr)) > limit
        status, exit_code, number, message = judge(reply, too_much=too_much)
        files: dict[str, bytes] = {}
        if fds:
            listing, content = (wire.read_memory_file(fd) for fd in fds)
            offset = 0
            for name, size in json.loads(listing or b"[]"):
                files[name] = content[offset : offset + size]
                offset += size
        return RunResult(
            status=status,
            exit_code=exit_code,
            signal=number,
            stdout=stdout[:limit],
            stderr=stderr[:limit],
            cpu_ms=float(reply.get("cpu_ms", 0.0)),
            wall_ms=float(reply.get("wall_ms", 0.0)),
            peak_mib=reply.get("peak_kib", 0) / 1024,
            files=files,
            message=message,
        )

    def close(self) -> None:
        """Closes what the job opened."""
        for fd in self._own:
            os.close(fd)
        self._own.clear()


def judge(reply: Mapping[str, Any], *, too_much: bool) -> tuple[RunStatus, int, int, str]:
    """Status, exit code, signal and message of an answer.

    A failure of ours comes first, always. Among the limits, output comes before memory and time: an
    endless printer fills the memory that its output lies in.
    """
    if "failure" in reply:
        return RunStatus.SANDBOX_FAILURE, 0, 0, str(reply["failure"])
    if too_much:
        return RunStatus.OUTPUT_LIMIT, 0, 0, ""
    if reply["oom"] or reply["note"] == "memory":
        return RunStatus.MEMORY_LIMIT, 0, 0, ""
    if reply["ending"] in ("cpu", "wall"):
        return RunStatus.TIME_LIMIT, 0, 0, f"{reply['ending']} time"
    wait_status = reply["wait_status"]
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        if number == signal.SIGXCPU:
            return RunStatus.TIME_LIMIT, 0, 0, "cpu time"
        return RunStatus.SIGNALED, 0, number, signal_name(number)
    exit_code = os.waitstatus_to_exitcode(wait_status)
    if reply["note"] == "compile":
        return RunStatus.COMPILE_ERROR, exit_code, 0, ""
    return RunStatus.FINISHED, exit_code, 0, ""


def signal_name(number: int) -> str:
    """Such as "SIGSEGV"."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
