"""Tests of a Python function: arguments in, values out, compared outside the sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rewardsvc.verifiers.code.calls import CallRecord, call
from rewardsvc.verifiers.code.cases import CallCase, call_cases
from rewardsvc.verifiers.code.compare import ValueComparison
from rewardsvc.verifiers.code.suite import Bench, Tests, failure_of, up_to_first_failure
from rewardsvc.verifiers.code.verdict import JudgingError, TestResult
from rewardsvc.verifiers.sandbox.values import Tree, UnencodableError, encode_strictly
from rewardsvc.verifiers.types import ErrorKind, Status

_MAX_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class FunctionTests(Tests):
    """Calls a function once a test.

    One process makes all the calls of a suite, and the limits are those of one test: if they are
    exceeded after some calls have returned, the rest starts over in a fresh process, so that only a
    call that had the whole limit to itself is ever blamed. Expected values stay with the grader.

    What one call leaves behind must not help the next: whatever was accepted is called again in a
    fresh process in the opposite order, and has to be right there as well.

    Attributes:
        function: Name of a function, or `Class.method`, of an instance made for each call.
        cases: Pairs of arguments and expected value, or `CallCase`s.
        comparison: When two values are the same.
        or_method_of: Class whose method is called where the program has that class and no function
            of that name at its top level; as in `class Solution` of many data sets.
    """

    function: str
    cases: Sequence[CallCase | tuple[Sequence[object], object]]
    comparison: ValueComparison = field(default_factory=ValueComparison, kw_only=True)
    or_method_of: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", call_cases(self.cases))
        if not all(part.isidentifier() for part in self.function.split(".")):
            raise ValueError(f"function is {self.function!r}, must be a name or Class.method")

    def __len__(self) -> int:
        return len(self.cases)

    def fingerprint(self) -> str:
        """See `Tests`."""
        function = [self.function, self.or_method_of]
        return json.dumps(["function", function, self._trees(), repr(self.comparison)])

    def _function_in(self, code: str) -> str:
        if self.or_method_of is None or "." in self.function:
            return self.function
        has_class = re.search(rf"^class\s+{self.or_method_of}\b", code, re.MULTILINE)
        has_function = re.search(rf"^(?:async\s+)?def\s+{self.function}\b", code, re.MULTILINE)
        if has_class and not has_function:
            return f"{self.or_method_of}.{self.function}"
        return self.function

    def _trees(self) -> list[tuple[Tree, Tree, Tree]]:
        """Positional arguments, named arguments and expected value of each case, tagged."""
        try:
            return [
                (
                    encode_strictly(list(case.args), f"args of test {index}"),
                    encode_strictly(dict(case.kwargs), f"kwargs of test {index}"),
                    encode_strictly(case.expected, f"expected value of test {index}"),
                )
                for index, case in enumerate(call_cases(self.cases))
            ]
        except UnencodableError as error:
            raise JudgingError(ErrorKind.BAD_REFERENCE, str(error)) from error

    def judge(self, bench: Bench) -> list[TestResult]:
        """See `Tests`."""
        if bench.language != "python":
            raise JudgingError(
                ErrorKind.INVALID_SAMPLE,
                f"function tests are for python, not {bench.language}: use stdin/stdout tests",
            )
        trees = self._trees()
        everything = range(len(trees))
        results = self._call_in_order(bench, trees, everything)
        accepted = [index for index in everything if index in results and results[index].passed]
        if len(trees) > 1 and accepted and not (bench.stop_early and len(accepted) < len(trees)):
            again = self._call_in_order(bench, trees, accepted[::-1])
            for index in accepted:
                if index in again and not again[index].passed:
                    results[index] = self._result(
                        index,
                        Status.WRONG_ANSWER,
                        f"right after other calls, wrong before them: {again[index].message}",
                    )
        ordered = [results[index] for index in sorted(results)]
        return up_to_first_failure(ordered, stop_early=bench.stop_early)

    def _call_in_order(
        self, bench: Bench, trees: Sequence[tuple[Tree, Tree, Tree]], order: Sequence[int]
    ) -> dict[int, TestResult]:
        """Calls in the order given; with `stop_early`, up to the first that fails."""
        results: dict[int, TestResult] = {}
        waiting = list(order)
        while waiting:
            cases = [trees[index][:2] for index in waiting]
            outcome = call(
                bench, bench.code, self._function_in(bench.code), cases, limits=bench.limits
            )
            if outcome.load_failure:
                for index in waiting:
                    results[index] = self._result(index, Status.RUNTIME_ERROR, outcome.load_failure)
                return results
            for index, record in zip(waiting, outcome.records, strict=False):
                results[index] = self._compare(index, trees[index][2], record)
                if bench.stop_early and not results[index].passed:
                    return results
            done = len(outcome.records)
            if not done:
                # It came first in a fresh process, so this ending is its own.
                status, message = failure_of(outcome.run) or (
                    Status.RUNTIME_ERROR,
                    "the process ended, or wrote over its results, before the call returned",
                )
                results[waiting[0]] = self._result(waiting[0], status, message)
                if bench.stop_early:
                    return results
                done = 1
            waiting = waiting[done:]
        return results

    def _result(self, index: int, status: Status, message: str) -> TestResult:
        weight = call_cases(self.cases)[index].weight
        score = float(status is Status.ACCEPTED)
        return TestResult(index=index, status=status, score=score, weight=weight, message=message)

    def _compare(self, index: int, expected: Tree, record: CallRecord) -> TestResult:
        weight = call_cases(self.cases)[index].weight
        if record.raised:
            status, message = Status.RUNTIME_ERROR, f"raised {record.raised}"
        elif self.comparison.same(expected, record.value):
            status, message = Status.ACCEPTED, ""
        else:
            status = Status.WRONG_ANSWER
            message = f"expected {_show(expected)}, got {_show(record.value)}"
        return TestResult(
            index=index,
            status=status,
            score=float(status is Status.ACCEPTED),
            weight=weight,
            message=message,
            cpu_ms=record.elapsed_ms,
        )


def _show(tree: Tree) -> str:
    """A value in its tagged form, cut to a readable length."""
    try:
        text = json.dumps(tree)
    except (ValueError, RecursionError):
        text = "a value nested too deep"
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
