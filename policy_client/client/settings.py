"""What a client is made with, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike

from rewardsvc.policy_client.client.retry import RetryPolicy

DEFAULT_TIMEOUT_S = 300.0
DEFAULT_MAX_SAMPLES_PER_CALL = 256
DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
DEFAULT_MAX_IN_FLIGHT = 8

MIN_PRIORITY, MAX_PRIORITY = -100, 100
_MAX_CLIENT_ID_BYTES = 128
_SMALLEST_MESSAGE_LIMIT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """How to talk TLS. The defaults trust the roots that gRPC ships with.

    Attributes:
        root_certificates: Path of a PEM file with the roots to trust instead.
        client_certificate: Path of a PEM file with the client's certificate chain.
        client_key: Path of a PEM file with the client's private key.
        server_name: Name to expect in the server's certificate instead of the address.
    """

    root_certificates: str | PathLike[str] | None = None
    client_certificate: str | PathLike[str] | None = None
    client_key: str | PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("TlsConfig needs both client_certificate and client_key, or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What a client is made with. Picklable.

    Attributes:
        addresses: "host:port" of each server of the service, or any other gRPC target.
        api_key: Sent as `authorization: Bearer …`.
        tls: None for plain text.
        timeout_s: Seconds that a call may take, retries included, unless the call says otherwise.
        client_id: Names the caller for fair sharing and metrics; at most 128 bytes.
        priority: Higher is served first; -100 to 100.
        max_samples_per_call: Most samples in one RPC.
        max_message_bytes: Most bytes in one request message.
        max_in_flight: Most RPCs of one call at a time.
        retry: When to try again.

    Raises:
        ValueError: If a value is out of range; names the field and the value.
    """

    addresses: tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    tls: TlsConfig | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    client_id: str = ""
    priority: int = 0
    max_samples_per_call: int = DEFAULT_MAX_SAMPLES_PER_CALL
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        if not self.addresses or not all(self.addresses):
            raise ValueError(f"addresses is {self.addresses!r}; name at least one, none empty")
        check_timeout(self.timeout_s)
        check_priority(self.priority)
        if len(self.client_id.encode()) > _MAX_CLIENT_ID_BYTES:
            raise ValueError(
                f"client_id has {len(self.client_id.encode())} bytes; "
                f"at most {_MAX_CLIENT_ID_BYTES} are allowed"
            )
        for name, least in (
            ("max_samples_per_call", 1),
            ("max_in_flight", 1),
            ("max_message_bytes", _SMALLEST_MESSAGE_LIMIT),
        ):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")


def split_addresses(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """Addresses as a tuple without duplicates; a string may list several, with commas between."""
    listed = addresses.split(",") if isinstance(addresses, str) else addresses
    return tuple(dict.fromkeys(address.strip() for address in listed))


def check_timeout(timeout_s: float) -> float:
    """`timeout_s` if it is finite and above 0.

    Raises:
        ValueError: If it is not: every wait has an end.
    """
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise ValueError(f"timeout_s is {timeout_s}; it must be finite and above 0")
    return timeout_s


def check_priority(priority: int) -> int:
    """`priority` if it is in range.

    Raises:
        ValueError: If it is not.
    """
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise ValueError(f"priority is {priority}; the range is {MIN_PRIORITY} to {MAX_PRIORITY}")
    return priority
