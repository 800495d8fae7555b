"""`Sandbox`: runs programs that nobody trusts.

    with Sandbox() as sandbox:
        result = sandbox.run("python", "print(6 * 7)")
        assert result.stdout == b"42\\n"

One sandbox serves any number of threads; `arun` serves event loops. It starts small processes of
its own (see `zygote`) when it is first used, and ends them in `close`, at the interpreter's exit,
or when the process that made it dies in whatever way.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rewardsvc.verifiers.sandbox import cgroups, rootfs
from rewardsvc.verifiers.sandbox.boot import ENVIRONMENT
from rewardsvc.verifiers.sandbox.jobs import Job, OpenJob, check_path
from rewardsvc.verifiers.sandbox.languages import (
    COMPILE_LIMITS,
    Language,
    find_languages,
    language,
)
from rewardsvc.verifiers.sandbox.layers import Layer, choose
from rewardsvc.verifiers.sandbox.pool import SlotPool, sweep
from rewardsvc.verifiers.sandbox.probing import probe
from rewardsvc.verifiers.sandbox.slot import OrderUnusedError, Slot, SlotBrokenError, SlotSettings
from rewardsvc.verifiers.sandbox.types import (
    Isolation,
    Limits,
    RunResult,
    RunStatus,
    SandboxError,
)

_ANSWER_MARGIN_SECONDS = 60.0
_DEFAULT_QUEUE_TIMEOUT_SECONDS = 600.0
_MAX_COMPILER_OUTPUT_CHARS = 10_000
# Slots may be killed while they wait; who kills them faster than they start gets an error.
_MAX_UNUSED_ORDERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Code that is ready to run, any number of times.

    Attributes:
        language: Its row in the table.
        code: The source.
        files: What the compiler made of it; empty if nothing is compiled.
        failure: How compiling ended, if it failed.
    """

    language: Language
    code: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    failure: RunResult | None = None


class Sandbox:
    """A pool of jails. Thread-safe; survives forks (each process has slots of its own)."""

    def __init__(
        self,
        *,
        num_slots: int | None = None,
        isolation: Isolation | str = Isolation.FULL,
        limits: Limits | None = None,
        preload: Sequence[str] = (),
        python_path: Sequence[str] = (),
        readable_paths: Sequence[str] = (),
        queue_timeout_seconds: float = _DEFAULT_QUEUE_TIMEOUT_SECONDS,
        without: Iterable[Layer] = (),
        snapshots: bool = True,
    ) -> None:
        """Looks at what this machine grants; starts nothing yet.

        Args:
            num_slots: How many programs run at a time; None for one more than there are cores, so
                that none is idle while an answer is handed over.
            isolation: What must stand before untrusted code runs: see `Isolation`.
            limits: Limits of runs that bring none.
            preload: Modules that Python programs find imported, beyond the usual. What they hold in
                memory makes every run slower.
            python_path: Absolute paths of folders that Python programs may import from, such as a
                site-packages. If this process is root, they must be readable by everyone.
            readable_paths: Absolute paths of the host that programs may read.
            queue_timeout_seconds: How long a run waits for a free slot.
            without: Layers to do without although this machine has them.
            snapshots: Whether Python programs start from a snapshot of a warm interpreter, where
                processor and kernel allow it; False for forks of the interpreter itself, which do
                the same and take longer.

        Raises:
            IsolationError: If this machine refuses a layer that `isolation` needs.
            ValueError: If an argument is out of range.
        """
        cores = os.cpu_count() or 1
        self.num_slots = cores + 1 if num_slots is None else num_slots
        if self.num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}, must be above 0")
        self.limits = limits or Limits()
        self.isolation = Isolation(isolation)
        reports = probe()
        self.layers = choose(self.isolation, reports, without)
        self._queue_timeout_seconds = queue_timeout_seconds
        tools = [path for row in find_languages().values() for path in row.paths]
        self._settings = SlotSettings(
            layers=self.layers,
            home=cgroups.find_home() if Layer.CGROUPS in self.layers else None,
            paths=tuple(rootfs.system_paths([*tools, *python_path, *readable_paths])),
            python_path=tuple(python_path),
            preload=tuple(preload),
            limits=self.limits,
            snapshots=snapshots,
        )
        sweep(self._settings)
        self._pool = SlotPool(self._settings, self.num_slots)
        _LIVE.add(self)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self._pool.close()

    def close(self) -> None:
        """Ends the sandbox's processes. Idempotent; runs in progress end first."""
        self._pool.close()

    def start(self) -> None:
        """Starts all slots now; otherwise the first runs do.

        Raises:
            SandboxError: If they cannot be started.
        """
        self._pool.start()

    def pids(self) -> list[int]:
        """Process ids of the slots that are idle now, for operators and tests."""
        return self._pool.pids()

    def run(
        self,
        language_name: str,
        code: str,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        fetch: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> RunResult:
        """Compiles, if the language wants that, and runs a program.

        Args:
            language_name: Of the table in `languages`, or an alias.
            code: The program.
            stdin: What it reads.
            files: Placed in its working folder, by relative path.
            fetch: Names of files to bring back if the program leaves them as regular files; `*`
                stands for any part of a name in the working folder itself.
            limits: What it may use; the sandbox's if None.

        Returns:
            What it did. A program that fails or runs into a limit is a result, and so is a sandbox
            that breaks (SANDBOX_FAILURE).

        Raises:
            UnknownLanguageError: If the language is unknown or its tools are not installed.
            ValueError: If a file name leaves the working folder.
        """
        for name in (*(files or ()), *fetch):
            check_path(name)
        program = self.compile(language_name, code)
        return self.run_program(program, stdin=stdin, files=files, fetch=fetch, limits=limits)

    async def arun(self, language_name: str, code: str, **options: object) -> RunResult:
        """`run` for event loops: waits in a thread."""
        call = functools.partial(self.run, language_name, code, **options)  # type: ignore[arg-type]
        return await asyncio.to_thread(call)

    def compile(self, language_name: str, code: str) -> Program:
        """Makes a program that `run_program` can run many times.

        Raises:
            UnknownLanguageError: If the language is unknown or its tools are not installed.
        """
        row = language(language_name)
        if row.compile_command is None:
            return Program(language=row, code=code)
        job = Job(
            kind="exec",
            settings={"argv": row.compile_command, "env": {**ENVIRONMENT, **row.env}},
            files={row.source: code.encode("utf-8", "surrogatepass")},
            fetch=row.artifacts,
            limits=COMPILE_LIMITS,
        )
        result = self.execute(job)
        if result.ok and result.files:
            return Program(language=row, code=code, files=result.files)
        if result.status is not RunStatus.SANDBOX_FAILURE:
            said = (result.stderr + result.stdout).decode(errors="replace")
            why = said[:_MAX_COMPILER_OUTPUT_CHARS] or f"the compiler: {result.status}"
            result = replace(result, status=RunStatus.COMPILE_ERROR, message=why)
        return Program(language=row, code=code, failure=result)

    def run_program(
        self,
        program: Program,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        fetch: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> RunResult:
        """Runs a compiled program; see `run`."""
        if program.failure is not None:
            return program.failure
        return self.execute(self.job(program, stdin=stdin, files=files, fetch=fetch, limits=limits))

    def job(
        self,
        program: Program,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        fetch: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Job:
        """The job of running a program that did compile; arguments as in `run`."""
        limits = limits or self.limits
        files = files or {}
        row = program.language
        if not row.run_command:
            code = {"code": program.code}
            return Job(sources=code, stdin=stdin, files=files, fetch=fetch, limits=limits)
        own_files = program.files or {row.source: program.code.encode("utf-8", "surrogatepass")}
        argv = [part.format(memory_mib=limits.memory_mib) for part in row.run_command]
        return Job(
            kind="exec",
            settings={"argv": argv, "env": ENVIRONMENT},
            stdin=stdin,
            files={**own_files, **files},
            fetch=fetch,
            limits=replace(
                limits,
                memory_mib=limits.memory_mib + row.overhead_mib,
                num_processes=limits.num_processes + row.extra_processes,
                wall_ms=limits.elapsed_ms,
            ),
        )

    def execute(self, job: Job) -> RunResult:
        """Runs one job. A sandbox that breaks is a result with SANDBOX_FAILURE."""
        return self._execute_together((job,))[0]

    def execute_pair(self, first: Job, second: Job) -> tuple[RunResult, RunResult]:
        """Runs two jobs at the same time, which may talk over descriptors that each was given.

        Those descriptors are closed here, so that each side sees when the other ends.
        """
        first_result, second_result = self._execute_together((first, second))
        return first_result, second_result

    def _execute_together(self, jobs: Sequence[Job]) -> list[RunResult]:
        opened: list[OpenJob] = []
        passed = {fd for job in jobs for fd in job.passed_fds} if len(jobs) > 1 else set()
        try:
            if len(jobs) > self.num_slots:
                raise SandboxError(f"{len(jobs)} programs at a time need as many slots")
            opened += [OpenJob(job) for job in jobs]
            if len(jobs) == 1:  # of a pair, the descriptors that connect it are closed by then
                for _ in range(_MAX_UNUSED_ORDERS):
                    with contextlib.suppress(OrderUnusedError):
                        return self._run_on_slots(jobs, opened, passed)
            return self._run_on_slots(jobs, opened, passed)
        except (SandboxError, SlotBrokenError, OSError) as error:
            failed = RunResult(status=RunStatus.SANDBOX_FAILURE, message=str(error))
            return [failed for _ in jobs]
        finally:
            for fd in passed:
                os.close(fd)
            for one in opened:
                one.close()

    def _run_on_slots(
        self, jobs: Sequence[Job], opened: Sequence[OpenJob], passed: set[int]
    ) -> list[RunResult]:
        with self._pool.take(len(jobs), self._queue_timeout_seconds) as slots:
            return _run_together(slots, jobs, opened, passed)

    def _forget_parent(self) -> None:
        self._pool.forget_parent()


def _run_together(
    slots: Sequence[Slot], jobs: Sequence[Job], opened: Sequence[OpenJob], passed: set[int]
) -> list[RunResult]:
    """Sends all orders, closes the descriptors in `passed`, and waits for all answers."""
    try:
        for slot, job, one in zip(slots, jobs, opened, strict=True):
            slot.send(job.order(), one.fds)
        while passed:
            os.close(passed.pop())
        return [_result(*run) for run in zip(slots, jobs, opened, strict=True)]
    except BaseException:
        for slot in slots:
            slot.close()  # what they were about to answer belongs to nobody
        raise


def _result(slot: Slot, job: Job, opened: OpenJob) -> RunResult:
    received: list[int] = []
    try:
        reply, received = slot.receive(job.limits.elapsed_ms / 1000 + _ANSWER_MARGIN_SECONDS)
        return opened.result(reply, received)
    except OrderUnusedError:
        raise
    except SlotBrokenError as error:
        return RunResult(status=RunStatus.SANDBOX_FAILURE, message=str(error))
    finally:
        for fd in received:
            os.close(fd)


_LIVE: weakref.WeakSet[Sandbox] = weakref.WeakSet()
_default: Sandbox | None = None
_default_lock = threading.Lock()


def default_sandbox() -> Sandbox:
    """One sandbox for the whole process, with default settings; made when first asked for."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Sandbox()
        return _default


def _after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for sandbox in list(_LIVE):
        sandbox._forget_parent()


def _at_exit() -> None:
    for sandbox in list(_LIVE):
        sandbox.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
