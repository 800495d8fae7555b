"""What the code verifier says of a completion."""

from __future__ import annotations

from dataclasses import dataclass

from rewardsvc.verifiers.types import ErrorKind, Status, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """How the program did on one test.

    Attributes:
        index: Position of the test in its suite, from 0.
        status: ACCEPTED, or what went wrong.
        score: 0.0 to 1.0; between the two only by a checker's decision.
        weight: Share of the test among its neighbours.
        message: What was expected and what came, for people.
        cpu_ms: CPU time; of function tests the elapsed time of the call as the candidate's own
            process measured it, which is information and nothing is decided by it.
    """

    __test__ = False  # not a test of ours

    index: int
    status: Status
    score: float = 0.0
    weight: float = 1.0
    message: str = ""
    cpu_ms: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the test counts in full."""
        return self.status is Status.ACCEPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVerdict(Verdict):
    """A verdict with the tests that it was made of.

    Attributes:
        tests: In order of their index; those after the one that decided may be missing.
        num_tests: How many the suite has.
        program: What was run; empty if no program was found.
    """

    tests: tuple[TestResult, ...] = ()
    num_tests: int = 0
    program: str = ""


class CompileFailedError(Exception):
    """The program does not compile; the message is the compiler's."""


class JudgingError(Exception):
    """The program could not be judged: no reward, and none of it is the program's fault.

    Attributes:
        kind: Why.
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
