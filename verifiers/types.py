"""What a verifier says of a completion.

Example:
    >>> Verdict.accepted("1/2 = 0.5, exactly").reward
    1.0
    >>> Verdict.failed(ErrorKind.BAD_REFERENCE, "cannot parse '[1, 2'").reward is None
    True
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How the answer did. All but ERROR come with a reward."""

    ACCEPTED = "accepted"
    WRONG_ANSWER = "wrong_answer"
    NO_ANSWER = "no_answer"
    RUNTIME_ERROR = "runtime_error"
    COMPILE_ERROR = "compile_error"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    PARTIAL = "partial"
    ERROR = "error"


class ErrorKind(StrEnum):
    """Why there is no reward: none of these is the answer's fault."""

    INVALID_SAMPLE = "invalid_sample"
    BAD_REFERENCE = "bad_reference"
    VERIFIER_TIMEOUT = "verifier_timeout"
    SANDBOX_FAILURE = "sandbox_failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier says of one completion.

    Attributes:
        status: How the answer did.
        reward: Finite, usually 0.0 to 1.0; None if and only if `status` is ERROR.
        explanation: How the verdict was reached, for people.
        error: Why there is no reward; set if and only if `status` is ERROR.

    Raises:
        ValueError: If the fields contradict each other, or the reward is not finite.
    """

    status: Status
    reward: float | None
    explanation: str = ""
    error: ErrorKind | None = None

    def __post_init__(self) -> None:
        failed = self.status is Status.ERROR
        if failed != (self.reward is None) or failed != (self.error is not None):
            raise ValueError(
                f"status={self.status}, reward={self.reward}, error={self.error}: "
                "a verdict has a reward, or status ERROR and an error"
            )
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"Verdict.reward is {self.reward}, which is no reward")

    @classmethod
    def accepted(cls, explanation: str = "") -> Verdict:
        """A right answer: reward 1.0."""
        return cls(status=Status.ACCEPTED, reward=1.0, explanation=explanation)

    @classmethod
    def rejected(cls, explanation: str = "", *, status: Status = Status.WRONG_ANSWER) -> Verdict:
        """An answer that earns nothing: reward 0.0, and why."""
        return cls(status=status, reward=0.0, explanation=explanation)

    @classmethod
    def failed(cls, error: ErrorKind, explanation: str) -> Verdict:
        """No reward, neither 0 nor 1: the answer could not be judged."""
        return cls(status=Status.ERROR, reward=None, explanation=explanation, error=error)
