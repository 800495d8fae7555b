"""A checker (special judge): decides where many outputs are right."""

from __future__ import annotations

from dataclasses import dataclass

from rewardsvc.verifiers.code.calls import call
from rewardsvc.verifiers.code.cases import StdioCase
from rewardsvc.verifiers.code.suite import Bench, failure_of
from rewardsvc.verifiers.code.verdict import CompileFailedError, JudgingError
from rewardsvc.verifiers.sandbox.values import decode
from rewardsvc.verifiers.types import ErrorKind, Status


@dataclass(frozen=True, slots=True)
class Checker:
    """Python code that defines `check(stdin, stdout, expected)`.

    It is part of the tests, not of the candidate, and runs in a sandbox of its own. It returns True
    or False, or a score from 0.0 to 1.0.

    Attributes:
        code: The checker.
    """

    code: str

    def score(self, bench: Bench, case: StdioCase, stdout: bytes) -> tuple[float, str | None]:
        """The score of an output, 0.0 to 1.0, and why it is not 1.0.

        Raises:
            JudgingError: If the checker fails, which is never the candidate's score.
        """
        try:
            text = stdout.decode("utf-8")
        except UnicodeDecodeError as error:
            return 0.0, f"the output is not UTF-8: {error.reason} at byte {error.start}"
        arguments = [case.stdin, text, case.stdout]
        try:
            outcome = call(
                bench, self.code, "check", [(arguments, {"d": []})], limits=bench.judge_limits
            )
        except CompileFailedError as error:
            raise JudgingError(ErrorKind.BAD_REFERENCE, f"checker: {error}") from error
        failure = failure_of(outcome.run)
        if failure is not None and failure[0] is Status.TIME_LIMIT:
            raise JudgingError(ErrorKind.VERIFIER_TIMEOUT, "the checker ran out of time")
        raised = outcome.load_failure or (outcome.records[0].raised if outcome.records else "")
        if raised or not outcome.complete:
            why = raised or (failure[1] if failure else "it returned nothing")
            raise JudgingError(ErrorKind.BAD_REFERENCE, f"the checker failed: {why}")
        return _as_score(outcome.records[0].value), "the checker rejects the output"


def _as_score(tree: object) -> float:
    try:
        value = decode(tree)
    except ValueError:
        value = None
    if type(value) in (bool, int, float) and 0 <= value <= 1:
        return float(value)
    raise JudgingError(
        ErrorKind.BAD_REFERENCE,
        f"the checker returned {value!r}, must be True, False, or a score from 0 to 1",
    )
