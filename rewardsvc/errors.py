"""What can go wrong, and the one table that says how a caller learns of it.

Two kinds, never mixed:

* A *call error* ends the call with a gRPC status. Subclasses of `ServiceError`; `STATUS_OF` maps
  each to its status code by name, so that nothing below the servicers imports grpc.
* An *item error* is about one sample. It is data (`ItemError`), sits in a `Score` without a value,
  and its neighbours are scored. `ItemFailure` carries one through code that works on one sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ServiceError(Exception):
    """Base of the errors that end a call. The message names the field, the value and the fix."""


class InvalidRequestError(ServiceError):
    """The call as a whole is malformed."""


class ConfigError(InvalidRequestError):
    """A configuration is malformed; the message names the field, the value and the fix."""


class UnknownScorerError(ServiceError):
    """No scorer has this name."""


class ScorerExistsError(ServiceError):
    """A scorer of this name exists already."""


class ScorerUnusableError(ServiceError):
    """The scorer exists but cannot serve this call: failed to load, or of the wrong type."""


class QueueFullError(ServiceError):
    """The admission queue has no room.

    Attributes:
        retry_delay_ms: When trying again is likely to succeed, in milliseconds.
    """

    def __init__(self, message: str, *, retry_delay_ms: int) -> None:
        super().__init__(message)
        self.retry_delay_ms = retry_delay_ms


class DeadlinePassedError(ServiceError):
    """The caller's deadline passed before the work was done."""


class NotServingError(ServiceError):
    """Loading, draining, or a pool that the call needs is down."""


class UnauthenticatedError(ServiceError):
    """No credentials, or wrong ones."""


class NotAllowedError(ServiceError):
    """The operator has not allowed this."""


STATUS_OF: dict[type[ServiceError], str] = {
    InvalidRequestError: "INVALID_ARGUMENT",
    ConfigError: "INVALID_ARGUMENT",
    UnknownScorerError: "NOT_FOUND",
    ScorerExistsError: "ALREADY_EXISTS",
    ScorerUnusableError: "FAILED_PRECONDITION",
    QueueFullError: "RESOURCE_EXHAUSTED",
    DeadlinePassedError: "DEADLINE_EXCEEDED",
    NotServingError: "UNAVAILABLE",
    UnauthenticatedError: "UNAUTHENTICATED",
    NotAllowedError: "PERMISSION_DENIED",
}
"""Name of the `grpc.StatusCode` of each call error; subclasses have that of their base."""


def status_of(error: BaseException) -> str:
    """The name of the `grpc.StatusCode` that `error` ends a call with. A bug is INTERNAL."""
    return next((STATUS_OF[cls] for cls in type(error).__mro__ if cls in STATUS_OF), "INTERNAL")


class ItemErrorCode(StrEnum):
    """Why one sample has no reward. Names follow `ItemErrorCode` in proto/rewardsvc/v1."""

    INVALID_SAMPLE = "invalid_sample"
    TOO_LONG = "too_long"
    BAD_REFERENCE = "bad_reference"
    NON_FINITE = "non_finite"
    NO_STEPS = "no_steps"
    VERIFIER_TIMEOUT = "verifier_timeout"
    SANDBOX_FAILURE = "sandbox_failure"
    MODEL_FAILURE = "model_failure"
    SCORER_EXCEPTION = "scorer_exception"
    UNKNOWN_SCORER = "unknown_scorer"
    QUEUE_FULL = "queue_full"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL = "internal"
    SCORER_UNUSABLE = "scorer_unusable"


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one sample has no reward.

    Attributes:
        code: The kind of failure.
        message: Names the field, the value and the fix.
        retryable: Whether the same sample may succeed if it is sent again.
    """

    code: ItemErrorCode
    message: str
    retryable: bool = False


class ItemFailure(Exception):  # noqa: N818 - it is not an error of the program
    """Raised in code that works on one sample; caught where the batch is put together."""

    def __init__(self, code: ItemErrorCode, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.error = ItemError(code, message, retryable)
