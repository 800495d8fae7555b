"""An interpreter's memory, moved into a file that it and its children map.

A fork copies the page tables of memory that belongs to the process alone, notes every page as used
twice, and makes the first write to each an exception that has to tell all processors. Nothing of
that is needed for pages that are a file's: a fork leaves them out, a child finds them when it looks
at them, a great many at once, and takes a copy of those that it writes to. So the process that
forks writes all that it holds into a memory file, once, and maps that in place of it, privately: no
child can change the file, nor even name it.

Which pages a run writes to is nearly the same each time, and one call that copies a stretch of them
costs less than half of what as many exceptions do. A rehearsal tells them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from rewardsvc.verifiers.sandbox import linux
from rewardsvc.verifiers.sandbox.chain import NEXT, Chain

_PAGE_BYTES = 4096
_HUGE_BYTES = 2 << 20
# Of an entry of /proc/N/pagemap.
_PRESENT, _OF_FILE, _ONCE = 1 << 63, 1 << 61, 1 << 56
_ENTRY = struct.Struct("=Q")
# One call writes no more than 2 GiB.
_MAX_WRITE_BYTES = 1 << 30


class Region(NamedTuple):
    """Memory that belongs to this process alone.

    Attributes:
        start, end: Addresses.
        writable: Whether it may be written to.
    """

    start: int
    end: int
    writable: bool


class Stretch(NamedTuple):
    """Pages one after another.

    Attributes:
        start: Address.
        length: In bytes.
    """

    start: int
    length: int


def private_memory(proc_fd: int, chain: Chain) -> list[Region]:
    """What holds pages of this process's own, but for its stack, for code, and for `chain`.

    Args:
        proc_fd: A /proc in which this process is to be seen.
        chain: To leave out.

    Raises:
        OSError: If it cannot be seen.
    """
    regions: list[Region] = []
    head: list[str] = []
    fd = os.open("self/smaps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    with os.fdopen(fd, encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            if not words[0].endswith(":"):
                head = words
            elif words[0] == "Anonymous:" and words[1] != "0":
                start, end = (int(part, 16) for part in head[0].split("-"))
                access, names = head[1], head[5:]
                if access in ("rw-p", "r--p") and names != ["[stack]"]:
                    regions += _without(chain, Region(start, end, access[1] == "w"))
    return regions


def _without(chain: Chain, region: Region) -> Iterator[Region]:
    """A region but for the chain; the kernel may have joined what lies side by side."""
    for start, end in (
        (region.start, min(region.end, chain.start)),
        (max(region.start, chain.end), region.end),
    ):
        for part in range(start, end, _MAX_WRITE_BYTES):
            yield Region(part, min(part + _MAX_WRITE_BYTES, end), region.writable)


def add_move(chain: Chain, regions: list[Region]) -> None:
    """Adds the rows that move memory into a file.

    Each of them can fail without harm: what was not moved stays as it was.

    Args:
        chain: It must have been there before `regions` were looked up.
        regions: From `private_memory`; what has been mapped since then stays where it is.

    Raises:
        OSError: If there is no memory for the file.
    """
    num_huge = -(-sum(region.end - region.start for region in regions) // _HUGE_BYTES)
    size = num_huge * _HUGE_BYTES
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    # Now, so that no call that writes finds room for a part of it.
    os.posix_fallocate(fd, 0, size)
    room = linux.map_memory(size + _HUGE_BYTES, 0)
    aligned = room + -room % _HUGE_BYTES
    tidying = chain.num_rows + 2 * len(regions) + 1 + num_huge
    for region, offset in _laid_out(regions):
        length = region.end - region.start
        chain.add("pwrite64", fd, region.start, length, offset, below=tidying)
    # Huge pages are mapped in one go; they are made where the file is mapped to be shared.
    access, flags = linux.PROT_READ | linux.PROT_WRITE, linux.MAP_SHARED | linux.MAP_FIXED
    chain.add("mmap", aligned, size, access, flags, fd, 0, below=NEXT)
    for address in range(aligned, aligned + size, _HUGE_BYTES):
        chain.add("madvise", address, _HUGE_BYTES, linux.MADV_COLLAPSE, below=NEXT)
    for region, offset in _laid_out(regions):
        access = linux.PROT_READ | (linux.PROT_WRITE if region.writable else 0)
        flags = linux.MAP_PRIVATE | linux.MAP_FIXED
        length = region.end - region.start
        chain.add("mmap", region.start, length, access, flags, fd, offset, below=NEXT)
    assert chain.num_rows == tidying
    chain.add("munmap", room, size + _HUGE_BYTES, below=NEXT)
    chain.add("close", fd, below=NEXT)


def num_rows(regions: list[Region]) -> int:
    """How many `add_move` adds, at most."""
    size = sum(region.end - region.start for region in regions)
    return 2 * len(regions) + size // _HUGE_BYTES + 4


def _laid_out(regions: list[Region]) -> Iterator[tuple[Region, int]]:
    """Each with its place in the file: one behind the other."""
    offset = 0
    for region in regions:
        yield region, offset
        offset += region.end - region.start


def page_entries(proc_fd: int, regions: list[Region]) -> bytes:
    """What the kernel knows of each page of `regions` in this process, for `written_pages`.

    Raises:
        OSError: As from `private_memory`.
    """
    fd = os.open("self/pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    return b"".join(
        os.pread(fd, (end - start) // _PAGE_BYTES * _ENTRY.size, start // _PAGE_BYTES * _ENTRY.size)
        for start, end, _ in regions
    )


def written_pages(entries: bytes, regions: list[Region]) -> list[Stretch]:
    """Which pages of `regions` a process has written to since it was forked.

    Args:
        entries: From `page_entries` in that process.
        regions: Of the process that it was forked from; others of its children still share them.
    """
    pages = (
        number
        for start, end, _ in regions
        for number in range(start // _PAGE_BYTES, end // _PAGE_BYTES)
    )
    of_process_alone = _PRESENT | _ONCE
    written = [
        number
        for number, (entry,) in zip(pages, _ENTRY.iter_unpack(entries), strict=True)
        if entry & (of_process_alone | _OF_FILE) == of_process_alone
    ]
    return list(_stretches(written))


def _stretches(pages: list[int]) -> Iterator[Stretch]:
    """Pages in ascending order, those that follow one another taken together."""
    start = end = -1
    for page in [*pages, -1]:
        if page != end:
            if end > start:
                yield Stretch(start * _PAGE_BYTES, (end - start) * _PAGE_BYTES)
            start = page
        end = page + 1


def add_copies(chain: Chain, stretches: list[Stretch]) -> None:
    """Adds the rows by which a child takes copies of pages that it will write to."""
    for start, length in stretches:
        chain.add("madvise", start, length, linux.MADV_POPULATE_WRITE, below=NEXT)
