"""Where an interpreter's code lies in memory, laid out so that forks and exits cost less.

A fork copies mappings, the end of a process takes them apart, and a process that runs code for the
first time stops at every sixteenth page or so until the kernel has looked it up. None of it depends
on what a program does, so each run of a few milliseconds pays the same again. Where a kernel
refuses any of this, all stays as it was.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Of sys/mman.h, on x86: Python's own module with these names would stay in the image.
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE, _MAP_ANONYMOUS = 0x02, 0x20
_MADV_HUGEPAGE = 14
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_MAP_FAILED = ctypes.c_void_p(-1).value
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


class Mapping(NamedTuple):
    """One line of /proc/self/maps.

    Attributes:
        start, end: Addresses.
        access: Such as "r-xp".
        offset: Of the file.
        inode: Of the file; "0" if there is none.
    """

    start: int
    end: int
    access: str
    offset: int
    inode: str


def _mappings() -> Iterator[Mapping]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, offset, _, inode, *_ = line.split(None, 5)
        start, end = (int(part, 16) for part in addresses.split("-"))
        yield Mapping(start, end, access, int(offset, 16), inode)


def join_mappings() -> None:
    """Makes one mapping of the parts of each library that are only read and those that are run.

    There are two fewer of every library then. Nothing becomes writable by it.
    """
    joined: list[Mapping] = []
    for one in [*_mappings(), Mapping(0, 0, "", 0, "0")]:
        joins = one.access in ("r--p", "r-xp") and one.inode != "0"
        last = joined[-1] if joined else one
        follows = (one.start, one.inode) == (last.end, last.inode)
        if joined and not (
            joins and follows and one.offset - last.offset == one.start - last.start
        ):
            if any(part.access == "r-xp" for part in joined):
                _protect(joined[0].start, last.end - joined[0].start)
            joined = []
        if joins:
            joined.append(one)


def enlarge_code_pages() -> None:
    """Moves the interpreter's own code, as it is and where it is, into huge pages.

    These are copied and taken apart as one entry for each 2 MiB, and are there when a child runs.
    """
    size = _huge_page_bytes()
    own = ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value or 0
    for one in _mappings():
        start, end = -(-one.start // size) * size, one.end // size * size
        if one.start <= own < one.end and one.access == "r-xp" and start < end:
            _move_into_huge_pages(start, end - start, size)


def _huge_page_bytes() -> int:
    """Size of those that the kernel makes if asked to; beyond all addresses if it makes none.

    Other processors would have to be told that code has been written.
    """
    try:
        offered = "[never]" not in (_HUGE_PAGES / "enabled").read_text()
        if offered and os.uname().machine == "x86_64":
            return int((_HUGE_PAGES / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        pass
    return 1 << 64


def _move_into_huge_pages(start: int, length: int, page_bytes: int) -> None:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    reserved = length + page_bytes  # of which some part is aligned
    room = libc.mmap(
        None,
        ctypes.c_size_t(reserved),
        _PROT_READ | _PROT_WRITE,
        _MAP_PRIVATE | _MAP_ANONYMOUS,
        -1,
        ctypes.c_long(0),
    )
    if room == _MAP_FAILED:
        return
    copy = -(-room // page_bytes) * page_bytes
    libc.madvise(ctypes.c_void_p(copy), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    ctypes.memmove(copy, start, length)
    if _protect(copy, length):
        # The one step that replaces code. The kernel looks first whether it can; if it fails after
        # that, for want of memory, the slot does not start.
        libc.mremap(
            ctypes.c_void_p(copy),
            ctypes.c_size_t(length),
            ctypes.c_size_t(length),
            _MREMAP_MAYMOVE | _MREMAP_FIXED,
            ctypes.c_void_p(start),
        )
    # What was not moved away; there is nothing any more where the copy was, if it was.
    libc.munmap(ctypes.c_void_p(room), ctypes.c_size_t(reserved))


def _protect(start: int, length: int) -> bool:
    """Makes memory readable and executable, and nothing else."""
    protect = ctypes.CDLL(None).mprotect
    return bool(
        protect(ctypes.c_void_p(start), ctypes.c_size_t(length), _PROT_READ | _PROT_EXEC) == 0
    )
