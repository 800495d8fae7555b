# ruff: noqa: N818 - users write `except Overloaded`; the package name says that these are errors
"""What a call can raise. An item that could not be scored is data, and raises nothing by itself.

Every message says which scorer and address, how many attempts were made in what time, what the
server said, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewardsvc.errors import ItemError


class RewardClientError(Exception):
    """Base of everything that a client raises about a call."""


class InvalidRequest(RewardClientError):
    """The server calls the request malformed. Sending it again does not help."""


class UnknownScorer(RewardClientError):
    """The server has no scorer of this name."""


class ScorerUnusable(RewardClientError):
    """The scorer exists but cannot serve the call: it failed to load, or is of the wrong type."""


class Overloaded(RewardClientError):
    """The server's queue stayed full for as long as the call could wait.

    Attributes:
        retry_delay_s: When the server expects to have room, in seconds; None if it did not say.
    """

    def __init__(self, message: str, *, retry_delay_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_delay_s = retry_delay_s


class DeadlineExceeded(RewardClientError):
    """The call's `timeout_s` passed."""


class ServiceUnavailable(RewardClientError):
    """No server could be reached, or all are loading or draining, for as long as allowed."""


class Unauthenticated(RewardClientError):
    """The API key is missing or wrong."""


class PermissionDenied(RewardClientError):
    """The server does not allow this call."""


class Cancelled(RewardClientError):
    """The call was cancelled: the client was closed meanwhile, or the server cancelled it."""


class ServerBug(RewardClientError):
    """The server failed, or its reply contradicts the contract."""


class ScoringFailed(RewardClientError):
    """Raised by `raise_for_errors` if items have no reward.

    Attributes:
        errors: (id, error) of each such item.
    """

    def __init__(self, errors: Sequence[tuple[str, ItemError]], num_items: int) -> None:
        first_id, first = errors[0]
        super().__init__(
            f"{len(errors)} of {num_items} items have no result; the first is {first_id!r}: "
            f"{first.code}: {first.message}"
        )
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class RpcFailure:
    """How one RPC failed, free of grpc's types.

    Attributes:
        code: Name of the gRPC status, for instance "UNAVAILABLE".
        details: What the server or the transport said.
        retry_delay_s: The server's wish when to come back, in seconds.
    """

    code: str
    details: str = ""
    retry_delay_s: float | None = None

    @property
    def too_large(self) -> bool:
        """Whether a message was over a size limit, which waiting does not cure."""
        return (
            self.code == "RESOURCE_EXHAUSTED"
            and self.retry_delay_s is None
            and "larger than max" in self.details
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """What an error message says about the call.

    Attributes:
        what: The call in words, for instance "Score with 'rlvr'".
        address: The address of the last attempt; empty if there was none.
        num_attempts: How often the failed RPC was tried.
        elapsed_s: Seconds since the call began.
        timeout_s: Seconds that the call may take.
    """

    what: str
    address: str
    num_attempts: int
    elapsed_s: float
    timeout_s: float

    def __str__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        attempts = "1 attempt" if self.num_attempts == 1 else f"{self.num_attempts} attempts"
        return f"{self.what}{where}, {attempts} in {self.elapsed_s:.1f} s"


_ERRORS: dict[str, tuple[type[RewardClientError], str]] = {
    "INVALID_ARGUMENT": (InvalidRequest, "correct the request"),
    "OUT_OF_RANGE": (InvalidRequest, "correct the request"),
    "NOT_FOUND": (UnknownScorer, "server_info() lists the scorers of the server"),
    "FAILED_PRECONDITION": (ScorerUnusable, "server_info() gives the state of each scorer"),
    "DEADLINE_EXCEEDED": (DeadlineExceeded, "raise timeout_s or send fewer samples"),
    "UNAVAILABLE": (ServiceUnavailable, "is the server running, and the address right?"),
    "UNAUTHENTICATED": (Unauthenticated, "pass api_key= with a key that the server knows"),
    "PERMISSION_DENIED": (PermissionDenied, "ask the operator to allow this call"),
    "CANCELLED": (Cancelled, "the client was closed, or the server cancelled the call"),
    "UNIMPLEMENTED": (ServerBug, "is this a rewardsvc server, and not older than the client?"),
}


def error_of(failure: RpcFailure, facts: CallFacts) -> RewardClientError:
    """The typed exception for a call that ends with `failure`."""
    said = f"{failure.code}: {failure.details or 'no details'}"
    if failure.too_large:
        return InvalidRequest(f"{facts}: {said} (lower max_message_bytes to the server's limit)")
    if failure.code == "RESOURCE_EXHAUSTED":
        return Overloaded(
            f"{facts}: {said} (the server is full: raise timeout_s, lower max_in_flight, "
            "or add servers)",
            retry_delay_s=failure.retry_delay_s,
        )
    cls, advice = _ERRORS.get(failure.code, (ServerBug, "the server's log has the details"))
    if cls is DeadlineExceeded:
        said = f"{said} (timeout_s={facts.timeout_s:g})"
    return cls(f"{facts}: {said} ({advice})")
