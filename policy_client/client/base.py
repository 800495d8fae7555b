"""What the two clients have in common: their settings, and how they travel between processes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rewardsvc.policy_client.client.addresses import AddressPool
from rewardsvc.policy_client.client.jobs import JobEnv
from rewardsvc.policy_client.client.retry import RetryPolicy
from rewardsvc.policy_client.client.settings import (
    DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_MAX_SAMPLES_PER_CALL,
    DEFAULT_TIMEOUT_S,
    ClientSettings,
    TlsConfig,
    check_priority,
    check_timeout,
    split_addresses,
)


class ClientBase:
    """Settings and bookkeeping of a client; starts no RPC."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: TlsConfig | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        client_id: str = "",
        priority: int = 0,
        max_samples_per_call: int = DEFAULT_MAX_SAMPLES_PER_CALL,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            addresses: "host:port" or "unix:/path" of one or more servers of one service; a string
                may list several, with commas between. Each RPC goes to the one with the least in
                flight that is not known to fail.
            api_key: Sent as `authorization: Bearer …`.
            tls: None for plain text; `TlsConfig()` for TLS with the usual roots.
            timeout_s: Seconds that a call may take, retries included, unless the call says
                otherwise. The default outlives a restart of the server.
            client_id: Names the caller for fair sharing and metrics; at most 128 bytes.
            priority: Higher is served first; -100 to 100.
            max_samples_per_call: Most samples in one RPC; larger batches are cut into chunks.
            max_message_bytes: Most bytes in one request message; at most the server's limit.
            max_in_flight: Most chunks of one call under way at a time.
            retry: When to try again; `RetryPolicy()` if None.

        Raises:
            ValueError: If a value is out of range; names the field and the value.
        """
        self._init_from(
            ClientSettings(
                addresses=split_addresses(addresses),
                api_key=api_key,
                tls=tls,
                timeout_s=timeout_s,
                client_id=client_id,
                priority=priority,
                max_samples_per_call=max_samples_per_call,
                max_message_bytes=max_message_bytes,
                max_in_flight=max_in_flight,
                retry=retry or RetryPolicy(),
            )
        )

    def _init_from(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._closed = False

    @property
    def settings(self) -> ClientSettings:
        """What the client was made with."""
        return self._settings

    # A client travels to another process as its settings, and connects there anew.
    def __getstate__(self) -> ClientSettings:
        return self._settings

    def __setstate__(self, settings: ClientSettings) -> None:
        self._init_from(settings)

    def _env(
        self, pool: AddressPool, timeout_s: float | None, priority: int | None = None
    ) -> JobEnv:
        settings = self._settings
        return JobEnv(
            settings=settings,
            pool=pool,
            started_at=time.monotonic(),
            timeout_s=settings.timeout_s if timeout_s is None else check_timeout(timeout_s),
            priority=settings.priority if priority is None else check_priority(priority),
        )
