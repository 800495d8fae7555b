"""gRPC's side of the settings: channel options, credentials, and what a failure says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import grpc

from rewardsvc.policy_client.client.errors import RpcFailure
from rewardsvc.policy_client.client.settings import ClientSettings, TlsConfig

MAX_BLOCKING_WAIT_S = 0.2
"""An interrupt that comes just before a thread goes to sleep, or to another thread, does not wake
it: whoever sleeps without an event loop looks up this often."""
RETRY_DELAY_KEY = "retry-delay-ms"

# A reply holds a few numbers and words a sample; this is a guard against nonsense, not a budget.
_MAX_REPLY_BYTES = 256 * 1024 * 1024
_CONNECT_TIMEOUT_MS = 5_000
# gRPC's own default grows to two minutes, in which a restarted server would not be noticed.
_MAX_RECONNECT_BACKOFF_MS = 2_000
_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 20_000
# What grpc.aio says when it writes to a stream that has just broken. No server sends it.
_BROKEN_WRITE = "Internal error from Core"


def channel_options(settings: ClientSettings) -> list[tuple[str, int | str]]:
    """Options of every channel that a client opens."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", _MAX_REPLY_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name, this is also the time that gRPC gives a connection attempt.
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_BACKOFF_MS),
        # Retries are decided here, where the deadline and the other addresses are known.
        ("grpc.enable_retries", 0),
        # Clients of one process that name the same address would otherwise share a connection,
        # and with it the failures that fork and restart leave behind.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if settings.tls is not None and settings.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", settings.tls.server_name))
    return options


def channel_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """Credentials of a TLS channel.

    Raises:
        OSError: If one of the files cannot be read.
    """

    def read(path: object) -> bytes | None:
        return None if path is None else Path(str(path)).read_bytes()

    return grpc.ssl_channel_credentials(
        root_certificates=read(tls.root_certificates),
        private_key=read(tls.client_key),
        certificate_chain=read(tls.client_certificate),
    )


def call_metadata(settings: ClientSettings) -> tuple[tuple[str, str], ...]:
    """Metadata of every RPC."""
    if settings.api_key is None:
        return ()
    return (("authorization", f"Bearer {settings.api_key}"),)


def rpc_failure(
    code: grpc.StatusCode | None,
    details: str | None,
    trailing_metadata: Iterable[tuple[str, str | bytes]] | None,
) -> RpcFailure:
    """What a failed RPC says, free of grpc's types."""
    delay_s = None
    for key, value in trailing_metadata or ():
        if key == RETRY_DELAY_KEY:
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            if text.isdecimal():
                delay_s = int(text) / 1000
    if code is grpc.StatusCode.INTERNAL and details == _BROKEN_WRITE:
        code = grpc.StatusCode.UNAVAILABLE
    return RpcFailure(code.name if code else "UNKNOWN", details or "", delay_s)
