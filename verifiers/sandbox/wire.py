"""Messages between the grader, a slot's supervisor and its children: a JSON header and descriptors.

Bulk (code, files, stdin, output) never travels here but in memory files whose descriptors do, so a
message fits a packet, and the supervisor never sees what one run sent when it forks the next.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from rewardsvc.verifiers.sandbox.types import SandboxError

Header: TypeAlias = dict[str, Any]
"""A message: JSON, between two processes of ours."""

MAX_HEADER_BYTES = 64 << 10
MAX_FDS = 16


def send(channel: socket.socket, header: Mapping[str, object], fds: Iterable[int] = ()) -> None:
    """Sends one message.

    Raises:
        SandboxError: If the header is too long for a packet.
        OSError: If the other side is gone.
    """
    body = json.dumps(header, separators=(",", ":")).encode()
    if len(body) > MAX_HEADER_BYTES:
        raise SandboxError(f"a message of {len(body)} bytes exceeds {MAX_HEADER_BYTES}")
    passed = array.array("i", fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else []
    channel.sendmsg([body], ancillary, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[Header, list[int]]:
    """Receives one message; the caller owns the descriptors, which are closed on exec.

    Raises:
        EOFError: If the other side is gone.
        TimeoutError: If the channel has a timeout and it passed.
    """
    space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    try:
        body, ancillary, _, _ = channel.recvmsg(MAX_HEADER_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError as error:
        raise EOFError("the other side is gone") from error
    passed = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            passed.frombytes(data[: len(data) - len(data) % passed.itemsize])
    if not body:
        for fd in passed:
            os.close(fd)
        raise EOFError("the other side is gone")
    return json.loads(body), list(passed)


def pack(meta: Mapping[str, object], blobs: Iterable[bytes]) -> int:
    """A sealed memory file with a JSON head and the blobs behind it; its descriptor."""
    head = json.dumps(meta, separators=(",", ":")).encode()
    return memory_file(b"".join((len(head).to_bytes(8, "little"), head, *blobs)))


def unpack(fd: int) -> tuple[Header, memoryview]:
    """What `pack` made: the head, and the blobs one after another."""
    data = memoryview(read_memory_file(fd))
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(bytes(data[8:start])), data[start:]


def memory_file(content: bytes) -> int:
    """A memory file that nobody can change any more; its descriptor, at offset 0."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    write_all(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
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


def write_all(fd: int, content: bytes) -> None:
    """Writes everything; one write call takes at most 2 GiB."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view[: 1 << 30]) :]
