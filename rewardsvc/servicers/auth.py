"""API keys: who may call at all, and who may operate the server."""

from __future__ import annotations

import hmac
from typing import Any

import grpc

HEALTH_PREFIX = "/grpc.health.v1.Health/"
ADMIN_PREFIX = "/rewardsvc.v1.AdminService/"


class ApiKeys(grpc.aio.ServerInterceptor):
    """Refuses calls without the right key in `authorization: Bearer KEY` or `x-api-key: KEY`.

    Health checks need no key: load balancers have none.
    """

    def __init__(self, key: str | None, admin_key: str | None, *, admin_enabled: bool) -> None:
        """Sets who gets in.

        Args:
            key: What callers must send; None lets everybody in.
            admin_key: What AdminService wants in its place; None: the same `key`.
            admin_enabled: Whether AdminService answers at all.
        """
        self._key = key
        self._admin_key = admin_key if admin_key is not None else key
        self._admin_enabled = admin_enabled

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
        wanted = self._admin_key if is_admin else self._key
        if wanted is not None and not _has_key(details.invocation_metadata, wanted):
            return _refusal(
                grpc.StatusCode.UNAUTHENTICATED,
                "no valid API key; send metadata `authorization: Bearer KEY`",
            )
        return await continuation(details)


def _has_key(metadata: Any, wanted: str) -> bool:
    found = ""
    for name, value in metadata or ():
        if name == "authorization" and isinstance(value, str):
            scheme, _, found = value.partition(" ")
            if scheme.lower() != "bearer":
                found = ""
        elif name == "x-api-key" and isinstance(value, str):
            found = value
    return hmac.compare_digest(found.strip().encode(), wanted.encode())


def _refusal(code: grpc.StatusCode, message: str) -> Any:
    """A handler that aborts every call, of whatever arity: all look the same on the wire."""

    async def refuse(_requests: Any, context: Any) -> None:
        await context.abort(code, message)

    return grpc.stream_stream_rpc_method_handler(refuse)
