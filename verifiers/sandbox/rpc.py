"""Calls from one jailed run into another, over a socket pair: plain data only, in both directions.

The tests run on one side, the candidate on the other. What has no plain form (an instance of the
candidate's class) stays where it is and is known by a number; the proxy on the tests' side forwards
attribute access and calls, and nothing else. In particular it has its own `==`, `bool` and `hash`:
an object that claims to equal everything is never asked.
"""

from __future__ import annotations

import builtins
import json
import os
from typing import Any

from rewardsvc.verifiers.sandbox.values import decode, encode, find_opaque

_MAX_FRAME_BYTES = 16 << 20
_LENGTH_BYTES = 4


class ChannelClosedError(Exception):
    """The other side is gone, or does not keep to the protocol."""


class Channel:
    """Frames of JSON over a stream: four bytes of length, then the text."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, message: dict[str, object]) -> None:
        """Sends one frame.

        Raises:
            ChannelClosedError: If the other side is gone.
        """
        body = json.dumps(message).encode()
        data = memoryview(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise ChannelClosedError from error

    def receive(self) -> dict[str, Any]:
        """The next frame.

        Raises:
            ChannelClosedError: If the other side is gone or sends something else than a frame.
        """
        length = int.from_bytes(self._read(_LENGTH_BYTES), "big")
        if length > _MAX_FRAME_BYTES:
            raise ChannelClosedError
        try:
            message = json.loads(self._read(length))
        except (ValueError, RecursionError) as error:
            raise ChannelClosedError from error
        if type(message) is not dict:
            raise ChannelClosedError
        return message

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = os.read(self._fd, min(count, 1 << 16))
            except OSError as error:
                raise ChannelClosedError from error
            if not part:
                raise ChannelClosedError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class Remote:
    """Something on the candidate's side: call it, or look at an attribute of it."""

    __slots__ = ("_channel", "_target")

    def __init__(self, channel: Channel, target: str | int) -> None:
        self._channel = channel
        self._target = target

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Calls it there.

        Raises:
            Exception: What the call raised, if it is an exception of the language, or a
                RuntimeError with its name.
            ChannelClosedError: If the candidate is gone.
        """
        request = {"args": _pack(list(args)), "kwargs": _pack(kwargs)}
        return self._ask({"call": self._target, **request})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask({"attribute": self._target, "name": name})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._target == self._target

    def __hash__(self) -> int:
        return hash(self._target)

    def __bool__(self) -> bool:
        raise TypeError("the candidate returned an object that is no plain data; it has no truth")

    def _ask(self, request: dict[str, object]) -> Any:
        self._channel.send(request)
        reply = self._channel.receive()
        if "value" in reply:
            try:
                return decode(reply["value"])
            except (ValueError, RecursionError) as error:
                raise ChannelClosedError from error
        if type(reply.get("handle")) is int:
            return Remote(self._channel, reply["handle"])
        raise _as_exception(reply)


def _pack(value: object) -> object:
    """Arguments as plain data; things of the candidate's are sent back by their number."""
    if isinstance(value, Remote):
        return {"remote": value._target}
    tree = encode(value)
    if find_opaque(tree) is None:
        return {"value": tree}
    if type(value) is list or type(value) is tuple:
        return {"list": [_pack(item) for item in value], "tuple": type(value) is tuple}
    if type(value) is dict:
        return {"dict": [[_pack(k), _pack(v)] for k, v in value.items()]}
    raise TypeError(f"a test passes a {type(value).__name__}, which cannot be sent: use plain data")


def _as_exception(reply: dict[str, Any]) -> Exception:
    name, message = str(reply.get("exception")), str(reply.get("message"))
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except Exception:
            return RuntimeError(f"{name}: {message}")
    return RuntimeError(f"{name}: {message}")


def serve(channel: Channel, names: dict[str, Any]) -> None:
    """Answers calls until the other side hangs up."""
    handles: dict[int, Any] = {}

    def resolve(target: Any) -> Any:
        if type(target) is int:
            return handles[target]
        try:
            return names[target]
        except KeyError:
            raise NameError(f"name {target!r} is not defined") from None

    def unpack(packed: dict[str, Any]) -> Any:
        if "remote" in packed:
            return resolve(packed["remote"])
        if "value" in packed:
            return decode(packed["value"])
        if "dict" in packed:
            return {unpack(k): unpack(v) for k, v in packed["dict"]}
        items = [unpack(item) for item in packed["list"]]
        return tuple(items) if packed["tuple"] else items

    while True:
        try:
            request = channel.receive()
        except ChannelClosedError:
            return
        try:
            if "call" in request:
                target = resolve(request["call"])
                found = target(*unpack(request["args"]), **unpack(request["kwargs"]))
            else:
                found = getattr(resolve(request["attribute"]), request["name"])
        except BaseException as error:
            channel.send({"exception": type(error).__name__, "message": str(error)[:2000]})
            continue
        tree = encode(found)
        if find_opaque(tree) is None:
            channel.send({"value": tree})
        else:
            handles[len(handles)] = found
            channel.send({"handle": len(handles) - 1})
