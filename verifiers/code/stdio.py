"""Tests of whole programs: input, output, and a comparison or a checker between the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rewardsvc.verifiers.code.cases import StdioCase, stdio_cases
from rewardsvc.verifiers.code.checker import Checker
from rewardsvc.verifiers.code.suite import Bench, Tests, failure_of, run_in_parallel
from rewardsvc.verifiers.code.text import TextComparison
from rewardsvc.verifiers.code.verdict import TestResult
from rewardsvc.verifiers.types import Status


@dataclass(frozen=True, slots=True)
class StdioTests(Tests):
    """Runs the program once a test, in a process that has seen no other test.

    The expected output never enters the sandbox, except to a checker, which runs without the
    candidate.

    Attributes:
        cases: Pairs of input and expected output, or `StdioCase`s.
        comparison: When two outputs are the same; unused with a checker.
        checker: Decides instead of a comparison, where many outputs are right.
    """

    cases: Sequence[StdioCase | tuple[str, str]]
    comparison: TextComparison = field(default_factory=TextComparison, kw_only=True)
    checker: Checker | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", stdio_cases(self.cases))

    def __len__(self) -> int:
        return len(self.cases)

    def fingerprint(self) -> str:
        """See `Tests`."""
        return repr(("stdio", self.cases, self.comparison, self.checker))

    def judge(self, bench: Bench) -> list[TestResult]:
        """See `Tests`."""
        program = bench.compile()
        cases = stdio_cases(self.cases)

        def judge_one(index: int) -> TestResult:
            case = cases[index]
            job = bench.sandbox.job(program, limits=bench.limits)
            run = bench.run(lambda: replace(job, stdin=case.stdin.encode("utf-8", "surrogatepass")))
            result = TestResult(
                index=index, status=Status.ACCEPTED, weight=case.weight, cpu_ms=run.cpu_ms
            )
            failure = failure_of(run)
            if failure is not None:
                return replace(result, status=failure[0], message=failure[1])
            if self.checker is None:
                difference = self.comparison.difference(case.stdout, run.stdout)
                score = float(difference is None)
            else:
                score, difference = self.checker.score(bench, case, run.stdout)
            if score == 1.0:
                return replace(result, score=1.0)
            status = Status.PARTIAL if score else Status.WRONG_ANSWER
            return replace(result, status=status, score=score, message=difference or "")

        return run_in_parallel(
            judge_one,
            len(cases),
            num_threads=bench.sandbox.num_slots,
            stop_early=bench.stop_early,
        )
