"""API keys: who may call at all, and who may operate the server."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

import grpc

HEALTH_PREFIX = "/grpc.health.v1.Health/"
ADMIN_PREFIX = "/rewardsvc.v1.AdminService/"


class ApiKeys(grpc.aio.ServerInterceptor):
    """Refuses calls without the right key in `authorization: Bearer KEY` or `x-api-key: KEY`.

    Health checks need no key: load balancers have none.
    """

    def __init__(
        self,
        key: str | None,
        admin_key: str | None,
        *,
        admin_enabled: bool,
        client_keys: Mapping[str, str] | None = None,
    ) -> None:
        """Sets who gets in.

        Args:
            key: What callers must send; None lets everybody in, unless there are `client_keys`.
            admin_key: What AdminService wants in its place; None: the same `key`.
            admin_enabled: Whether AdminService answers at all.
            client_keys: Client → a key of its own, as good as `key` but for AdminService.
        """
        self._key = key
        self._admin_key = admin_key if admin_key is not None else key
        self._admin_enabled = admin_enabled
        self._client_keys = dict(client_keys or {})

    @property
    def names(self) -> frozenset[str]:
        """Clients with keys of their own."""
        return frozenset(self._client_keys)

    def name_of(self, metadata: Any) -> str | None:
        """Whose key the metadata hold; None if it is nobody's own."""
        if not self._client_keys:
            return None
        found = _key_in(metadata)
        name = None
        for client, key in self._client_keys.items():  # all of them: time must not tell which
            if _same(found, key):
                name = client
        return name

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Lets the call through, or replaces its handler by a refusal."""
        method = details.method
        if method.startswith(HEALTH_PREFIX):
            return await continuation(details)
        is_admin = method.startswith(ADMIN_PREFIX)
        if is_admin and not self._admin_enabled:
            return _refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "AdminService is off; the operator can set server.admin.enabled",
            )
        if not self._lets_in(details.invocation_metadata, is_admin):
            return _refusal(
                grpc.StatusCode.UNAUTHENTICATED,
                "no valid API key; send metadata `authorization: Bearer KEY`",
            )
        return await continuation(details)

    def _lets_in(self, metadata: Any, is_admin: bool) -> bool:
        wanted = self._admin_key if is_admin else self._key
        if wanted is None and not self._client_keys:
            return True
        if wanted is not None and _same(_key_in(metadata), wanted):
            return True
        return not is_admin and self.name_of(metadata) is not None


def _key_in(metadata: Any) -> str:
    found = ""
    for name, value in metadata or ():
        if name == "authorization" and isinstance(value, str):
            scheme, _, found = value.partition(" ")
            if scheme.lower() != "bearer":
                found = ""
        elif name == "x-api-key" and isinstance(value, str):
            found = value
    return found.strip()


def _same(found: str, wanted: str) -> bool:
    return hmac.compare_digest(found.encode(), wanted.encode())


def _refusal(code: grpc.StatusCode, message: str) -> Any:
    """A handler that aborts every call, of whatever arity: all look the same on the wire."""

    async def refuse(_requests: Any, context: Any) -> None:
        await context.abort(code, message)

    return grpc.stream_stream_rpc_method_handler(refuse)
