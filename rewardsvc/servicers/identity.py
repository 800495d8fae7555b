"""Whose call it is: the name by which work is shared fairly between clients.

The name of the caller's key, where the operator gives each client a key (`server.client_keys`): it
cannot be chosen by the caller. Else what the caller calls itself, in the request's `client_id` or
the metadata `x-client-id`. Else the address that it calls from, without the port: processes of one
machine are one client unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rewardsvc.errors import InvalidRequestError
from rewardsvc.servicers.auth import ApiKeys

CLIENT_ID_KEY = "x-client-id"
MAX_CLIENT_ID_BYTES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, as far as the connection tells.

    Attributes:
        key_name: The name of its key; None if it has none.
        fallback: What it is called if it does not name itself.
        reserved: Names of keys, which nobody else may take.
    """

    key_name: str | None
    fallback: str
    reserved: Collection[str]

    def client(self, declared: str) -> str:
        """The client's name, given what the request says.

        Raises:
            InvalidRequestError: If that is too long.
        """
        if len(declared) > MAX_CLIENT_ID_BYTES or (
            not declared.isascii() and len(declared.encode()) > MAX_CLIENT_ID_BYTES
        ):
            raise InvalidRequestError(
                f"client_id: {len(declared.encode())} bytes; use at most {MAX_CLIENT_ID_BYTES}"
            )
        if self.key_name is not None:
            return self.key_name
        if not declared or declared in self.reserved:
            return self.fallback
        return declared


def caller_of(context: Any, keys: ApiKeys) -> Caller:
    """Who makes this call; `context` is gRPC's."""
    metadata = context.invocation_metadata()
    named = keys.name_of(metadata)
    claimed = ""
    if named is None:
        for key, value in metadata or ():
            if key == CLIENT_ID_KEY and isinstance(value, str):
                claimed = value[:MAX_CLIENT_ID_BYTES]
    if not claimed or claimed in keys.names:
        claimed = _host(context.peer())
    return Caller(key_name=named, fallback=claimed, reserved=keys.names)


def _host(peer: str) -> str:
    """`ipv4:10.0.0.1:4242` without the port; other kinds of addresses as they are."""
    if peer.startswith(("ipv4:", "ipv6:")):
        return peer.rpartition(":")[0]
    return peer
