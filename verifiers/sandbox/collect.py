"""Brings out the files that a run has left."""

from __future__ import annotations

import fnmatch
import json
import os
import stat

from rewardsvc.verifiers.sandbox import linux, wire

_MAX_FETCH = 256


def _expand(work_fd: int, names: list[str]) -> list[str]:
    """`names` with patterns replaced by what they match in the working folder itself."""
    if not any("*" in name for name in names):
        return names
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work_fd)
    try:
        present = sorted(os.listdir(folder))  # noqa: PTH208 - of a descriptor
    finally:
        os.close(folder)
    found = [
        match
        for name in names
        for match in (fnmatch.filter(present, name) if "*" in name else [name])
    ]
    return list(dict.fromkeys(found))[:_MAX_FETCH]


def collect(work_fd: int, names: list[str], limit_bytes: int) -> tuple[int, int]:
    """Two memory files: names and sizes of the regular files of these names, and their contents.

    It is done by a process of its own: what one run has left must not stay in the memory that the
    next one is forked from.
    """
    listing_fd = os.memfd_create("listing", os.MFD_CLOEXEC)
    content_fd = os.memfd_create("files", os.MFD_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            found = _collect(work_fd, names, limit_bytes, content_fd)
            wire.write_all(listing_fd, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return listing_fd, content_fd


def _collect(
    work_fd: int, names: list[str], limit_bytes: int, content_fd: int
) -> list[list[object]]:
    """Writes the regular files of these names to `content_fd`; returns their names and sizes.

    The run is over, so nothing moves. Links, devices, pipes and folders are left where they are.
    """
    found: list[list[object]] = []
    offset = 0
    for name in _expand(work_fd, names):
        try:
            fd = linux.open_beneath(work_fd, name)
        except OSError:
            continue
        try:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode) and info.st_size <= limit_bytes:
                content = wire.read_memory_file(fd, limit_bytes)
                limit_bytes -= len(content)
                wire.write_all(content_fd, content, offset)
                offset += len(content)
                found.append([name, len(content)])
        finally:
            os.close(fd)
    return found
