"""Interactive problems: the program talks to an interactor instead of reading a file."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewardsvc.verifiers.code.cases import StdioCase, stdio_cases
from rewardsvc.verifiers.code.suite import Bench, Tests, failure_of, run_in_parallel
from rewardsvc.verifiers.code.verdict import JudgingError, TestResult
from rewardsvc.verifiers.sandbox.jobs import Job
from rewardsvc.verifiers.sandbox.types import RunResult, RunStatus
from rewardsvc.verifiers.types import ErrorKind, Status

_REJECT = 1
_PYTHON_FLUSH_FAILED = 120
_TRACEBACK = "Traceback (most recent call last)"
_LAST_WORDS_BYTES = 4096


@dataclass(frozen=True, slots=True)
class InteractiveTests(Tests):
    """Runs program and interactor side by side, each reading what the other prints.

    The interactor is a Python script of the tests. It finds the test's `stdin` in `input.txt` and
    its `stdout` in `answer.txt`, exits with 0 to accept and with 1 to reject, and says why on
    stderr. The program must end by itself, without an error, once the interactor hangs up.

    Attributes:
        interactor: The script.
        cases: Pairs of input and answer for the interactor, or `StdioCase`s.
    """

    interactor: str
    cases: Sequence[StdioCase | tuple[str, str]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", stdio_cases(self.cases))

    def __len__(self) -> int:
        return len(self.cases)

    def fingerprint(self) -> str:
        """See `Tests`."""
        return repr(("interactive", self.interactor, self.cases))

    def judge(self, bench: Bench) -> list[TestResult]:
        """See `Tests`."""
        program = bench.compile()
        cases = stdio_cases(self.cases)

        def judge_one(index: int) -> TestResult:
            case = cases[index]

            def make_jobs() -> tuple[Job, Job]:
                read_program, write_interactor = os.pipe()
                read_interactor, write_program = os.pipe()
                job = bench.sandbox.job(program, limits=bench.limits)
                interactor = Job(
                    sources={"code": self.interactor},
                    files={
                        "input.txt": case.stdin.encode("utf-8", "surrogatepass"),
                        "answer.txt": case.stdout.encode("utf-8", "surrogatepass"),
                    },
                    limits=bench.judge_limits,
                    stdin_fd=read_interactor,
                    stdout_fd=write_interactor,
                )
                return replace(job, stdin_fd=read_program, stdout_fd=write_program), interactor

            run, interactor = bench.run_pair(make_jobs)
            status, message = _decide(run, interactor)
            return TestResult(
                index=index,
                status=status,
                score=float(status is Status.ACCEPTED),
                weight=case.weight,
                message=message,
                cpu_ms=run.cpu_ms,
            )

        # Each test takes two slots.
        threads = max(1, bench.sandbox.num_slots // 2)
        return run_in_parallel(
            judge_one, len(cases), num_threads=threads, stop_early=bench.stop_early
        )


def _decide(program: RunResult, interactor: RunResult) -> tuple[Status, str]:
    said = interactor.stderr.decode(errors="replace").strip()
    crashed = not interactor.ok and (interactor.exit_code != _REJECT or _TRACEBACK in said)
    rejected = interactor.status is RunStatus.FINISHED and not interactor.ok and not crashed
    failure = failure_of(program)
    if failure is not None and failure[0] is not Status.RUNTIME_ERROR:
        return failure
    if rejected:
        return Status.WRONG_ANSWER, said or "the interactor rejects it"
    if failure is not None and not (crashed and _was_hung_up_on(program)):
        return failure
    if interactor.ok and failure is None:
        return Status.ACCEPTED, said
    if interactor.status is RunStatus.TIME_LIMIT:
        raise JudgingError(ErrorKind.VERIFIER_TIMEOUT, "the interactor ran out of time")
    raise JudgingError(
        ErrorKind.BAD_REFERENCE, f"the interactor failed: {interactor.status} {said}"
    )


def _was_hung_up_on(run: RunResult) -> bool:
    """Whether a run failed because nobody was left to read it or to write to it.

    A program meets a broken interactor's closed pipe in many ways, depending on which of the two
    is quicker: as a signal, as an exception, or when the interpreter flushes at its end (exit code
    120). Such an end says nothing about the program.
    """
    if run.signal == signal.SIGPIPE or run.exit_code == _PYTHON_FLUSH_FAILED:
        return True
    last_words = run.stderr[-_LAST_WORDS_BYTES:]
    return any(name in last_words for name in (b"BrokenPipeError", b"EOFError"))
