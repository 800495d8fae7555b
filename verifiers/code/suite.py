"""What every kind of test suite has in common: it is judged on a bench, and has a fingerprint."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rewardsvc.verifiers.code.verdict import CompileFailedError, JudgingError, TestResult
from rewardsvc.verifiers.sandbox.jobs import Job
from rewardsvc.verifiers.sandbox.sandbox import Program, Sandbox
from rewardsvc.verifiers.sandbox.types import Limits, RunResult, RunStatus
from rewardsvc.verifiers.types import ErrorKind, Status

_ATTEMPTS = 2
_SECOND_CHANCE_SECONDS = 1.0
"""A run that breaks later than this is not started over: it may have been about to end at its
limit, and its caller would wait for all of that again."""
_MAX_STDERR_CHARS = 1000

_STATUS: dict[RunStatus, Status] = {
    RunStatus.SIGNALED: Status.RUNTIME_ERROR,
    RunStatus.TIME_LIMIT: Status.TIME_LIMIT,
    RunStatus.MEMORY_LIMIT: Status.MEMORY_LIMIT,
    RunStatus.OUTPUT_LIMIT: Status.OUTPUT_LIMIT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where one program is judged.

    Attributes:
        sandbox: Runs it.
        language: Its language.
        code: The program.
        limits: Of one test.
        judge_limits: Of checkers, interactors and opaque asserts.
        stop_early: Whether the first test that fails ends it.
    """

    sandbox: Sandbox
    language: str
    code: str
    limits: Limits
    judge_limits: Limits
    stop_early: bool

    def compile(self) -> Program:
        """The program, ready to run.

        Raises:
            CompileFailedError: If it does not compile.
            JudgingError: If the sandbox broke.
        """
        for _ in _attempts():
            program = self.sandbox.compile(self.language, self.code)
            failure = program.failure
            if failure is None:
                return program
            if failure.status is not RunStatus.SANDBOX_FAILURE:
                raise CompileFailedError(failure.message)
        raise JudgingError(ErrorKind.SANDBOX_FAILURE, failure.message if failure else "")

    def run(self, make_job: Callable[[], Job]) -> RunResult:
        """Runs a job; a sandbox that breaks at once gets a second chance.

        Raises:
            JudgingError: If the sandbox broke.
            CompileFailedError: If the program is no Python.
        """
        return self.run_pair(lambda: (make_job(),))[0]

    def run_pair(self, make_jobs: Callable[[], tuple[Job, ...]]) -> tuple[RunResult, ...]:
        """Runs one job, or two that talk to each other; see `run`."""
        results: tuple[RunResult, ...] = ()
        for _ in _attempts():
            jobs = make_jobs()
            if len(jobs) == 1:
                results = (self.sandbox.execute(jobs[0]),)
            else:
                results = self.sandbox.execute_pair(*jobs)
            if all(result.status is not RunStatus.SANDBOX_FAILURE for result in results):
                if results[0].status is RunStatus.COMPILE_ERROR:
                    raise CompileFailedError(results[0].stderr.decode(errors="replace"))
                return results
        broken = next(r for r in results if r.status is RunStatus.SANDBOX_FAILURE)
        raise JudgingError(ErrorKind.SANDBOX_FAILURE, broken.message)


def _attempts() -> Iterator[int]:
    """The first, and the next ones as long as those before them did not take long."""
    deadline = time.monotonic() + _SECOND_CHANCE_SECONDS
    for number in range(_ATTEMPTS):
        if number and time.monotonic() > deadline:
            return
        yield number


class Tests(ABC):
    """A suite of tests."""

    __test__ = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of tests."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that is the same for two suites only if they judge alike."""

    @abstractmethod
    def judge(self, bench: Bench) -> list[TestResult]:
        """Runs the tests.

        Returns:
            Results in order of their index; with `bench.stop_early` the last one may have failed
            and those after it be missing.

        Raises:
            CompileFailedError: If the program does not compile.
            JudgingError: If it cannot be judged.
        """


def failure_of(result: RunResult) -> tuple[Status, str] | None:
    """Status and message of a run that did not end well by itself; None if it did."""
    if result.ok:
        return None
    if result.status is RunStatus.FINISHED:
        said = result.stderr.decode(errors="replace")[-_MAX_STDERR_CHARS:]
        return Status.RUNTIME_ERROR, f"exit code {result.exit_code}: {said}"
    return _STATUS[result.status], result.message or result.status.replace("_", " ")


def run_in_parallel(
    judge_one: Callable[[int], TestResult], count: int, *, num_threads: int, stop_early: bool
) -> list[TestResult]:
    """Judges tests 0 to `count` - 1, several at once, begun in order.

    Every test before the first that fails is finished, so what is decided does not depend on which
    thread was faster.
    """
    if count == 1 or num_threads == 1:
        return _one_after_another(judge_one, count, stop_early=stop_early)
    lock = threading.Lock()
    results: dict[int, TestResult] = {}
    errors: list[BaseException] = []
    waiting = iter(range(count))

    def work() -> None:
        while True:
            with lock:
                failed = any(not r.passed for r in results.values())
                index = None if errors or (stop_early and failed) else next(waiting, None)
            if index is None:
                return
            try:
                result = judge_one(index)
            except BaseException as error:
                with lock:
                    errors.append(error)
                return
            with lock:
                results[index] = result

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(num_threads, count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return up_to_first_failure([results[i] for i in sorted(results)], stop_early=stop_early)


def _one_after_another(
    judge_one: Callable[[int], TestResult], count: int, *, stop_early: bool
) -> list[TestResult]:
    results: list[TestResult] = []
    for index in range(count):
        results.append(judge_one(index))
        if stop_early and not results[-1].passed:
            break
    return results


def up_to_first_failure(results: Sequence[TestResult], *, stop_early: bool) -> list[TestResult]:
    """Without what another thread has finished behind the test that decided."""
    if stop_early:
        for position, result in enumerate(results):
            if not result.passed:
                return list(results[: position + 1])
    return list(results)


def memory_file(name: str) -> int:
    """A memory file for a child to write to; its descriptor."""
    return os.memfd_create(name, os.MFD_CLOEXEC)
