"""Messages between the grader, a slot's supervisor and its children: a JSON header and descriptors.

Bulk (code, files, stdin, output) never travels here but in memory files whose descriptors do, so a
message fits a packet, and the supervisor never sees what one run sent when it forks the next.
"""

from __future__ import annotations

import _socket
import fcntl
import json
import os
import socket
from array import array
from collections.abc import Iterable, Mapping
from json.encoder import c_make_encoder, encode_basestring_ascii  # type: ignore[attr-defined]
from typing import Any, TypeAlias

from rewardsvc.verifiers.sandbox.types import SandboxError

Header: TypeAlias = dict[str, Any]
"""A message: JSON, between two processes of ours."""

UNUSED: Header = {"unused": True}
"""Part of a slot's last words if no program had begun: the order, if there was one, may be given to
another slot."""
MAX_HEADER_BYTES = 64 << 10
MAX_FDS = 16
_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * array("i").itemsize)
# As plain numbers: those of the module are enumerations, whose arithmetic costs microseconds.
_SOL_SOCKET, _SCM_RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)
# What json.loads ends up in, without the layers about it that look for blanks and options.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_encoder = json.JSONEncoder(separators=(",", ":"))
# The module's own functions make such an encoder for each message.
_chunks = c_make_encoder and c_make_encoder(
    None, _encoder.default, encode_basestring_ascii, None, ":", ",", False, False, True
)
_NOSIGNAL, _CLOEXEC = int(socket.MSG_NOSIGNAL), int(socket.MSG_CMSG_CLOEXEC)


class UnreadError(EOFError):
    """The other side is gone, and has not read all that it was sent."""


def send(channel: _socket.socket, header: Mapping[str, object], fds: Iterable[int] = ()) -> None:
    """Sends one message.

    Raises:
        SandboxError: If the header is too long for a packet.
        OSError: If the other side is gone.
    """
    send_body(channel, encode(header), fds)


def encode(header: Mapping[str, object]) -> bytes:
    """A header as the body of a message."""
    text = "".join(_chunks(header, 0)) if _chunks else _encoder.encode(header)
    return text.encode()


def send_body(channel: _socket.socket, body: bytes, fds: Iterable[int] = ()) -> None:
    """Sends one message whose header is encoded already; raises as `send` does."""
    if len(body) > MAX_HEADER_BYTES:
        raise SandboxError(f"a message of {len(body)} bytes exceeds {MAX_HEADER_BYTES}")
    passed = array("i", fds)
    ancillary = [(_SOL_SOCKET, _SCM_RIGHTS, passed)] if passed else []
    channel.sendmsg([body], ancillary, _NOSIGNAL)


def receive(channel: _socket.socket) -> tuple[Header, list[int]]:
    """Receives one message; the caller owns the descriptors, which are closed on exec.

    Raises:
        EOFError: If the other side is gone; `UnreadError` if it has left messages unread.
        TimeoutError: If the channel has a timeout and it passed.
    """
    body, fds = receive_body(channel)
    return decode(body), fds


def decode(body: bytes) -> Header:
    """A header, as `send` has encoded it."""
    found: Header = _scan(body.decode(), 0)[0]
    return found


def receive_body(channel: _socket.socket) -> tuple[bytes, list[int]]:
    """Receives one message without decoding its header; otherwise as `receive`."""
    try:
        body, ancillary, _, _ = channel.recvmsg(MAX_HEADER_BYTES, _FD_SPACE, _CLOEXEC)
    except ConnectionError as error:
        raise UnreadError("the other side is gone, with messages unread") from error
    passed: list[int] = []
    for level, kind, data in ancillary:
        if level == _SOL_SOCKET and kind == _SCM_RIGHTS:
            passed += memoryview(data).cast("i")
    if not body:
        for fd in passed:
            os.close(fd)
        raise EOFError("the other side is gone")
    return body, passed


def pack(meta: Mapping[str, object], blobs: Iterable[bytes]) -> int:
    """A sealed memory file with a JSON head and the blobs behind it; its descriptor."""
    head = encode(meta)
    return memory_file(b"".join((len(head).to_bytes(8, "little"), head, *blobs)))


def unpack(fd: int) -> tuple[Header, memoryview]:
    """What `pack` made: the head, and the blobs one after another."""
    data = memoryview(read_memory_file(fd))
    start = 8 + int.from_bytes(data[:8], "little")
    return decode(bytes(data[8:start])), data[start:]


def memory_file(content: bytes) -> int:
    """A memory file that nobody can change any more; its descriptor, at offset 0."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    write_all(fd, content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def read_memory_file(fd: int, limit: int | None = None) -> bytes:
    """The content of a memory file from its start, at most `limit` bytes of it."""
    size = os.fstat(fd).st_size
    size = size if limit is None else min(size, limit)
    parts: list[bytes] = []
    offset = 0
    while offset < size:
        part = os.pread(fd, min(size - offset, 1 << 30), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def write_all(fd: int, content: bytes, offset: int = 0) -> None:
    """Writes everything at a place in a file; one call takes at most 2 GiB."""
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view[: 1 << 30], offset)
        view, offset = view[written:], offset + written
