"""Assert-style test code, as MBPP and HumanEval have it.

Where every statement is `assert f(literals) == literal` it says the same as function tests and is
turned into them. Anything else is *opaque*: it runs in a sandbox of its own, where the functions
that it names are proxies that call the candidate in another one.
"""

from __future__ import annotations

import ast
import builtins
import os
import socket
from dataclasses import dataclass, field, replace

from rewardsvc.verifiers.code.calls import parse_line
from rewardsvc.verifiers.code.cases import CallCase
from rewardsvc.verifiers.code.compare import Numbers, ValueComparison
from rewardsvc.verifiers.code.function import FunctionTests
from rewardsvc.verifiers.code.suite import Bench, Tests, failure_of, memory_file
from rewardsvc.verifiers.code.verdict import JudgingError, TestResult
from rewardsvc.verifiers.sandbox import wire
from rewardsvc.verifiers.sandbox.jobs import Job
from rewardsvc.verifiers.sandbox.types import RunResult
from rewardsvc.verifiers.types import ErrorKind, Status

_MAX_RESULT_BYTES = 1 << 20

# What `==` between plain values means in Python, but for True == 1, which no test means.
_PYTHON_EQUALITY = ValueComparison(numbers=Numbers.VALUE)


@dataclass(frozen=True, slots=True)
class AssertTests(Tests):
    """Test code that raises unless the candidate is right.

    Attributes:
        code: The test code.
        entry_point: If given, the test code defines `check(candidate)`, which is called with this
            function of the candidate's (HumanEval's form).
        comparison: Of asserts that can be turned into function tests.
    """

    code: str
    entry_point: str | None = field(default=None, kw_only=True)
    comparison: ValueComparison = field(default=_PYTHON_EQUALITY, kw_only=True)

    def __post_init__(self) -> None:
        if self.entry_point is not None and not self.entry_point.isidentifier():
            raise ValueError(f"entry_point is {self.entry_point!r}, must be a name")

    @property
    def full_code(self) -> str:
        """The test code with the call that it needs."""
        if self.entry_point is None:
            return self.code
        return f"{self.code}\ncheck({self.entry_point})\n"

    def __len__(self) -> int:
        reduced = reduce_asserts(self.full_code)
        if reduced is not None:
            return sum(len(suite) for suite in reduced)
        return int(bool(_parse(self.full_code).body))

    def fingerprint(self) -> str:
        """See `Tests`."""
        return repr(("assert", self.full_code, self.comparison))

    def judge(self, bench: Bench) -> list[TestResult]:
        """See `Tests`."""
        if bench.language != "python":
            raise JudgingError(
                ErrorKind.INVALID_SAMPLE,
                f"assert tests are for python, not {bench.language}: use stdin/stdout tests",
            )
        reduced = reduce_asserts(self.full_code, self.comparison)
        if reduced is not None:
            return _judge_in_turn(bench, reduced)
        return [self._judge_opaque(bench)]

    def _judge_opaque(self, bench: Bench) -> TestResult:
        names = free_names(self.full_code)
        results: list[int] = []

        def make_jobs() -> tuple[Job, Job]:
            while results:
                os.close(results.pop())
            results.append(memory_file("results"))
            ours, theirs = (end.detach() for end in socket.socketpair())
            candidate = Job(
                mode="serve", sources={"code": bench.code}, limits=bench.limits, extra_fds=[ours]
            )
            judge = Job(
                mode="judge",
                sources={"code": self.full_code},
                settings={"names": names},
                limits=bench.judge_limits,
                extra_fds=[theirs, os.dup(results[0])],
            )
            return candidate, judge

        try:
            candidate, judge = bench.run_pair(make_jobs)
            record = parse_line(wire.read_memory_file(results[0], _MAX_RESULT_BYTES).strip())
        finally:
            while results:
                os.close(results.pop())
        status, message = _decide(candidate, judge, record)
        return TestResult(
            index=0,
            status=status,
            score=float(status is Status.ACCEPTED),
            message=message,
            cpu_ms=candidate.cpu_ms,
        )


def _decide(
    candidate: RunResult, judge: RunResult, record: dict[str, object] | None
) -> tuple[Status, str]:
    """Status and message; the judge's word counts only where the judge has spoken."""
    if record is None:
        failure = failure_of(candidate)
        if failure is not None:
            return failure
        broken = failure_of(judge)
        if broken is not None and broken[0] is Status.TIME_LIMIT:
            raise JudgingError(ErrorKind.VERIFIER_TIMEOUT, "the test code ran out of time")
        said = broken[1] if broken else "it left no result"
        raise JudgingError(ErrorKind.BAD_REFERENCE, f"the test code failed: {said}")
    if record.get("passed") is True and judge.ok:
        return Status.ACCEPTED, ""
    if "tests" in record:
        raise JudgingError(
            ErrorKind.BAD_REFERENCE, f"the test code is no Python: {record['tests']}"
        )
    if "candidate" in record:
        return failure_of(candidate) or (Status.RUNTIME_ERROR, f"the program {record['candidate']}")
    return Status.WRONG_ANSWER, str(record.get("failed", "the test code did not finish"))


def _judge_in_turn(bench: Bench, suites: list[FunctionTests]) -> list[TestResult]:
    results: list[TestResult] = []
    offset = 0
    for suite in suites:
        for result in suite.judge(bench):
            results.append(replace(result, index=result.index + offset))
        if bench.stop_early and not results[-1].passed:
            break
        offset += len(suite)
    return results


def _parse(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise JudgingError(
            ErrorKind.BAD_REFERENCE, f"the test code is no Python: {error}"
        ) from error


def reduce_asserts(
    code: str, comparison: ValueComparison = _PYTHON_EQUALITY
) -> list[FunctionTests] | None:
    """The function tests that say the same as `code`, one suite a function; None if none do.

    Raises:
        JudgingError: If `code` is no Python.
    """
    suites: list[tuple[str, list[CallCase]]] = []
    for statement in _parse(code).body:
        found = _reduce(statement)
        if found is None:
            return None
        name, case = found
        if not suites or suites[-1][0] != name:
            suites.append((name, []))
        suites[-1][1].append(case)
    return [FunctionTests(name, cases, comparison=comparison) for name, cases in suites]


def _reduce(statement: ast.stmt) -> tuple[str, CallCase] | None:
    """Function and case of `assert f(literals) == literal`; None for anything else."""
    if not isinstance(statement, ast.Assert) or not isinstance(statement.test, ast.Compare):
        return None
    compare = statement.test
    call = compare.left
    if len(compare.ops) != 1 or not isinstance(call, ast.Call):
        return None
    if not isinstance(call.func, ast.Name) or hasattr(builtins, call.func.id):
        return None
    try:
        expected = ast.literal_eval(compare.comparators[0])
        args = tuple(ast.literal_eval(argument) for argument in call.args)
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if len(kwargs) != len(call.keywords):
        return None
    same = isinstance(compare.ops[0], ast.Eq)
    is_singleton = isinstance(compare.ops[0], ast.Is) and expected in (None, True, False)
    if not (same or is_singleton) or expected is ...:
        return None
    return call.func.id, CallCase(args, expected, kwargs=kwargs)


def free_names(code: str) -> list[str]:
    """Names that test code uses and neither defines, imports nor finds among the builtins.

    Raises:
        JudgingError: If `code` is no Python.
    """
    used: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(_parse(code)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return sorted(used - bound - set(dir(builtins)))
