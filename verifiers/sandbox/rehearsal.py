"""What a slot tries before it serves, so that runs find it done, and what is learned by it.

At its first executions the interpreter notes things down: types of operands beside the
instructions, places of methods, free blocks. What is noted before the first fork is not noted by
each run anew, in memory that it would have to copy first. What runs still write to is much the same
each time, and one of them tells.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import select
import signal
import time
from collections.abc import Callable

from rewardsvc.verifiers.sandbox import child, harness, jail, snapshot, wire
from rewardsvc.verifiers.sandbox.jail import JailPlan
from rewardsvc.verifiers.sandbox.snapshot import Region, Stretch

# Small, but with what most programs have. Copying what another one would not write to costs half of
# what it saves where it would.
_PROGRAM = """
import sys
def solve(numbers):
    counts = {}
    for number in numbers:
        counts[number] = counts.get(number, 0) + 1
    return sorted(counts)
print(*solve([int(part) for part in input().split()]))
"""
_STDIN = b"3 1 4 1 5\n"
_TIMEOUT_SECONDS = 5.0
_READ_BYTES = 1 << 16


def warm_up() -> None:
    """Runs a small program in this process, from which the processes of runs will be forked."""
    payload = _payload("pass")
    for _ in range(harness.NUM_REHEARSALS):
        child.unpack(payload)
    os.close(payload)
    harness.rehearse()


def _payload(code: str) -> int:
    head = {"mode": "script", "settings": {}, "piped": False, "files": []}
    return wire.pack({**head, "sources": [("code", len(code))]}, [code.encode()])


def written(
    plan: JailPlan, regions: list[Region], proc_fd: int, wake: Callable[[], None]
) -> list[Stretch]:
    """Memory that a run writes to, from its first instruction to its last; empty if unknown.

    Args:
        plan: What runs wear; this one is none, and goes without.
        regions: Memory of this process.
        proc_fd: See `snapshot.private_memory`.
        wake: What forked children do first.
    """
    other = os.memfd_create("other")
    order = [_payload(_PROGRAM), wire.memory_file(_STDIN), os.memfd_create("stdout"), other]
    told_read, told_write = os.pipe()
    started: list[int] = []
    try:
        # Pages that this process writes to meanwhile are not the run's alone either, then.
        started.append(_start_witness(told_read, told_write))
        run = os.fork()
        if run == 0:
            try:
                kept = [_moved(fd) for fd in (proc_fd, told_write)]
                _give(order, other)
                atexit.register(lambda: os.write(kept[1], snapshot.page_entries(kept[0], regions)))
                wake()
                child.obey(plan, "/", b"", len(order))
            finally:
                os._exit(1)
        started.append(run)
        os.close(told_write)
        entries = _read_all(told_read)
        return snapshot.written_pages(entries, regions) if entries else []
    finally:
        for pid in started:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (told_read, *order):
            os.close(fd)


def _start_witness(*fds: int) -> int:
    """A process that shares this one's memory, writes to none of it, and does not hold `fds`."""
    pid = os.fork()
    if pid == 0:
        for fd in fds:
            os.close(fd)
        while True:
            signal.pause()
    return pid


def _read_all(fd: int) -> bytes:
    """Everything up to the end of a pipe; nothing if that takes too long."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    parts = []
    while select.select([fd], [], [], max(deadline - time.monotonic(), 0))[0]:
        parts.append(os.read(fd, _READ_BYTES))
        if not parts[-1]:
            return b"".join(parts)
    return b""


def _moved(fd: int) -> int:
    """A descriptor beyond those that a run finds taken."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, jail.CHANNEL_FD + 1)


def _give(order: list[int], control: int) -> None:
    """Puts an order's descriptors where a run finds them."""
    *moved, moved_control = [_moved(fd) for fd in (*order, control)]
    for number, fd in enumerate(moved, start=child.FIRST_FD):
        os.dup2(fd, number)
    os.dup2(moved_control, jail.CONTROL_FD)
