"""What a run may use, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class SandboxError(Exception):
    """The sandbox cannot work at all: it says nothing about any program."""


class IsolationError(SandboxError):
    """This machine refuses layers that the operator asked for; the message names them."""


class UnknownLanguageError(ValueError):
    """No such language, or its compiler or interpreter is not installed."""


class Isolation(StrEnum):
    """How much of the jail must stand before untrusted code runs.

    FULL needs every layer but the memory and process cgroups, which ordinary users are seldom
    given, and whose place rlimits take. STRICT needs those too. BEST_EFFORT runs with whatever the
    kernel grants: for machines that a container or a virtual machine isolates already.
    """

    STRICT = "strict"
    FULL = "full"
    BEST_EFFORT = "best-effort"


class RunStatus(StrEnum):
    """How a run ended. Names follow `RunStatus` in proto/rewardsvc/v1."""

    FINISHED = "finished"
    SIGNALED = "signaled"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    COMPILE_ERROR = "compile_error"
    SANDBOX_FAILURE = "sandbox_failure"


MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use.

    Attributes:
        cpu_ms: CPU time of all the program's processes, in milliseconds.
        wall_ms: Elapsed time; None for ten times `cpu_ms` and two seconds. It stops programs that
            sleep. It is generous so that a busy machine cannot turn a right program into a slow
            one.
        memory_mib: Memory, without what the interpreter holds before the program starts.
        output_bytes: stdout and stderr, each.
        num_processes: Threads and processes at a time.
        disk_mib: Size of the working folder, which lies in memory; also the largest file.
        num_files: Files and folders in the working folder.

    Raises:
        ValueError: If a limit is not above zero.
    """

    cpu_ms: int = 10_000
    wall_ms: int | None = None
    memory_mib: int = 512
    output_bytes: int = 4 * MIB
    num_processes: int = 32
    disk_mib: int = 64
    num_files: int = 1024

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is None and name == "wall_ms":
                continue
            if type(value) is not int or value <= 0:
                raise ValueError(f"Limits.{name} is {value!r}, must be a whole number above 0")

    @property
    def elapsed_ms(self) -> int:
        """The limit of elapsed time that applies, in milliseconds."""
        return self.cpu_ms * 10 + 2000 if self.wall_ms is None else self.wall_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What one run did.

    Attributes:
        status: How it ended.
        exit_code: What it exited with; 0 unless `status` is FINISHED or COMPILE_ERROR.
        signal: The signal that ended it; 0 unless `status` is SIGNALED.
        stdout: At most `Limits.output_bytes`.
        stderr: Likewise.
        cpu_ms: CPU time of all its processes that were waited for, in milliseconds.
        wall_ms: Elapsed time, in milliseconds.
        peak_mib: Largest memory in use, in MiB; of an interpreter, including the interpreter.
        files: The files that were asked for and that the program left as regular files.
        message: What the compiler said, or what broke.
    """

    status: RunStatus
    exit_code: int = 0
    signal: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_ms: float = 0.0
    wall_ms: float = 0.0
    peak_mib: float = 0.0
    files: Mapping[str, bytes] = field(default_factory=dict)
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself, with exit code 0."""
        return self.status is RunStatus.FINISHED and self.exit_code == 0
