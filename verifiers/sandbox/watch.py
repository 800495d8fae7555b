"""Waits for a process and stops it at its limits.

CPU time is what is limited; elapsed time only ends programs that sleep. A process cannot use CPU
faster than the machine has cores, so the next look at its clock is due no sooner than the rest of
its budget divided by their number: a run that stays within its limits costs no look at all.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from rewardsvc.verifiers.sandbox.linux import process_cpu_ns

Usage: TypeAlias = tuple[int, float, float, int]
"""Of a process that was waited for: wait status, user and system CPU time in seconds, largest
resident set in KiB."""

_NUM_CORES = os.cpu_count() or 1
_MIN_POLL_MS = 2
_REAP_POLL_MS = 50
# Behind the name in /proc/N/stat: utime, stime, cutime, cstime.
_UTIME = 11


class Ending(StrEnum):
    """Why the wait was over."""

    EXITED = "exited"
    CPU = "cpu"
    WALL = "wall"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """How a process ended.

    Attributes:
        ending: Why the wait was over; the process is dead and reaped in any case.
        wait_status: As wait4 gives it.
        cpu_ms: CPU time of the process and of the children it waited for.
        peak_kib: Largest resident set of one of its processes, in KiB.
        wall_ms: Elapsed time since the wait began.
    """

    ending: Ending
    wait_status: int
    cpu_ms: float
    peak_kib: int
    wall_ms: float


def reap(pid: int) -> Usage:
    """Waits for a child of this process."""
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss


def watch(
    pid: int,
    *,
    cpu_ms: int,
    wall_ms: int,
    used_before_ms: float = 0.0,
    hangup_fds: Iterable[int] = (),
    orphans: bool = False,
    family: bool = False,
    reap: Callable[[int], Usage] = reap,
) -> Watched:
    """Waits for a process; kills it when a limit is reached.

    Args:
        pid: A process that cannot be reaped but by `reap`.
        cpu_ms: CPU time of its threads from now on.
        wall_ms: Elapsed time.
        used_before_ms: CPU time that the process had used up before, which does not count.
        hangup_fds: If one becomes readable, whoever could use the outcome is gone: kill.
        orphans: Whether to reap processes that were left to this one, as an init must, and count
            their CPU time.
        family: Whether /proc shows this process's pid namespace, so that the CPU time of all
            processes in it can be summed up; otherwise that of `pid` alone is watched.
        reap: How to wait for it once it is dead or about to be.
    """
    start = time.monotonic()
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    for fd in (pidfd, *hangup_fds):
        poller.register(fd, select.POLLIN)
    ending = Ending.EXITED
    orphan_cpu_ms = 0.0
    used_ms, wall_left_ms = 0.0, float(wall_ms)
    try:
        while True:
            timeout_ms = min(wall_left_ms, max((cpu_ms - used_ms) / _NUM_CORES, _MIN_POLL_MS))
            if orphans:
                timeout_ms = min(timeout_ms, _REAP_POLL_MS)
            ready = [fd for fd, _ in poller.poll(timeout_ms)]
            if pidfd in ready:
                break
            if ready:
                ending = Ending.ABANDONED
                break
            if orphans:
                orphan_cpu_ms += _reap_orphans(pid)
            used_ms = _family_cpu_ms() if family else cpu_used_ms(pid) - used_before_ms
            used_ms += orphan_cpu_ms
            wall_left_ms = wall_ms - (time.monotonic() - start) * 1000
            if used_ms >= cpu_ms or wall_left_ms <= 0:
                ending = Ending.CPU if used_ms >= cpu_ms else Ending.WALL
                break
    finally:
        os.close(pidfd)
    if ending is not Ending.EXITED:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_status, user_s, system_s, peak_kib = reap(pid)
    wall = (time.monotonic() - start) * 1000
    if orphans:
        orphan_cpu_ms += _reap_orphans(-1)
    cpu = max((user_s + system_s) * 1000 - used_before_ms + orphan_cpu_ms, 0.0)
    if cpu > cpu_ms and ending is Ending.EXITED:
        ending = Ending.CPU
    return Watched(
        ending=ending,
        wait_status=wait_status,
        cpu_ms=cpu,
        peak_kib=peak_kib,
        wall_ms=wall,
    )


def cpu_used_ms(pid: int) -> float:
    """CPU time of a process so far, in milliseconds, without its children; 0 if it is dead."""
    try:
        return process_cpu_ns(pid) / 1e6
    except OSError:
        return 0.0  # already dead: the poll that follows says so


def _family_cpu_ms() -> float:
    """CPU time of all other processes of this pid namespace and of those they have waited for."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[_UTIME : _UTIME + 4]))
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def _reap_orphans(keep: int) -> float:
    """Reaps dead children other than `keep`; their CPU time in milliseconds."""
    total = 0.0
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return total
        if info is None or info.si_pid == keep:
            return total
        _, _, usage = os.wait4(info.si_pid, 0)
        total += (usage.ru_utime + usage.ru_stime) * 1000
