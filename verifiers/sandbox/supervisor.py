"""Forks children ahead of need, carries orders to them, enforces their limits from outside."""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from rewardsvc.verifiers.sandbox import (
    cgroups,
    child,
    harness,
    jail,
    landlock,
    linux,
    rootfs,
    wire,
)
from rewardsvc.verifiers.sandbox.collect import collect
from rewardsvc.verifiers.sandbox.entry import Entry, enter_namespaces
from rewardsvc.verifiers.sandbox.forker import ForkerGoneError
from rewardsvc.verifiers.sandbox.jail import JailPlan
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.nursery import Child, ChildFailedError, Measure, Nursery
from rewardsvc.verifiers.sandbox.rooms import Rooms
from rewardsvc.verifiers.sandbox.watch import Ending, cpu_used_ms, watch

_MIB = 1 << 20
_DONTWAIT = int(socket.MSG_DONTWAIT)
_INIT_GRACE_MS = 5000
# Room in the cgroup for what a python child holds beside the memory of its program.
_CGROUP_SLACK_BYTES = 48 * _MIB


class Supervisor:
    """Forks children ahead of need and carries orders to them, one at a time."""

    def __init__(
        self,
        control: socket.socket,
        settings: wire.Header,
        entry: Entry,
        base_bytes: int,
        group: cgroups.Cgroup | None,
    ) -> None:
        """Enters the slot's namespaces.

        Args:
            control: To the grader.
            settings: From the grader.
            entry: From the porter.
            base_bytes: Address space of this process with everything imported.
            group: The slot's cgroups, if any.
        """
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        self._control = control
        self._group = group
        self._nested = Layer.PID_NS in entry.layers
        self._limited: tuple[int, int] = (0, 0)
        self._num_oom_kills = group.oom_kills() if group is not None else 0
        # The slot's own /proc, if it gets one, is not there yet; in a container it may get none.
        proc_fd = -1
        if settings["snapshots"]:
            proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        ns_dir_fd = os.open("/proc/self/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        enter_namespaces(entry)
        if Layer.NO_NEW_PRIVS in entry.layers:
            linux.set_no_new_privs()
        if {Layer.CAPABILITIES, Layer.USER_NS} <= entry.layers:
            linux.empty_bounding_set()
        readable = tuple(p for p in entry.paths if Path(p).exists())
        ruleset = -1
        # Without a mount namespace every child has a folder of its own, and needs rules of its own.
        if {Layer.LANDLOCK, Layer.MOUNT_NS} <= entry.layers and entry.child_uid < 0:
            ruleset = landlock.prepare(readable, [rootfs.WORK_PARENT], rootfs.DEVICES)
        self._plan = plan = JailPlan(
            kind="python",
            layers=entry.layers,
            readable=readable,
            ruleset=ruleset,
            uid=entry.child_uid,
            base_bytes=base_bytes,
            grouped=group is not None,
            limited=Layer.RLIMITS in entry.layers,
        )
        rooms = None
        if Layer.MOUNT_NS in entry.layers:
            hide_proc = Layer.PROC in entry.layers
            reuse = {Layer.PID_NS, Layer.SECCOMP} <= entry.layers
            rooms = Rooms(ns_dir_fd, owner=entry.child_uid, hide_proc=hide_proc, reuse=reuse)
        for name in [name for name in sys.modules if name.partition(".")[0] == "rewardsvc"]:
            del sys.modules[name]  # programs have no business with it
        sys.argv[:], sys.orig_argv[:] = [], []  # nor with the paths of the host
        # Another user's limits are not ours to set.
        self._limits_children = plan.uid < 0
        self._has_begun = False
        self._body, self._order = b"", wire.Header()
        self._nursery = Nursery(plan, rooms, group, settings["scratch"], proc_fd)
        if proc_fd >= 0:
            os.close(proc_fd)
        self._first = _measure("python", settings["limits"])

    def run(self) -> NoReturn:
        """Serves until the grader hangs up or the slot is broken."""
        try:
            self._serve()
        except ForkerGoneError:
            self._end_slot()

    def _end_slot(self) -> NoReturn:
        # Whether the slot is idle or has an order in hand: if no program has begun, none was lost.
        with contextlib.suppress(OSError):
            if not self._has_begun:
                error = {"error": "the process that forks was killed"}
                wire.send(self._control, error | wire.UNUSED)
        os._exit(1)

    def _serve(self) -> NoReturn:
        self._nursery.give_back(self._nursery.take(self._first))
        self._nursery.prepare(self._first)
        self._nursery.settle(-1)
        wire.send(self._control, {"ready": True})
        while True:
            body, fds = self._next_order()
            if body != self._body:  # orders differ in little but what their descriptors hold
                self._body, self._order = body, wire.decode(body)
            order = self._order
            measure = _measure(order["kind"], order["limits"])
            reply = None
            try:
                while reply is None:
                    child = self._nursery.take(measure)
                    reply = self._carry_out(child, order, body, fds)
            except ChildFailedError as error:
                _close_all(fds)
                self._answer({"failure": str(error)})
                continue
            self._answer(reply)
            self._has_begun = False
            self._nursery.close(child)
            self._nursery.prepare(measure)
            self._nursery.settle(self._control.fileno())

    def _next_order(self) -> tuple[bytes, list[int]]:
        waiting_for = [self._control.fileno(), *self._nursery.forker_fds]
        if select.select(waiting_for, [], [])[0] != waiting_for[:1]:
            self._end_slot()
        return wire.receive_body(self._control)

    def _answer(self, reply: wire.Header) -> None:
        fetched = reply.pop("fetched_fds", ())
        wire.send(self._control, reply, fetched)
        _close_all(fetched)

    def _carry_out(
        self, made: Child, order: wire.Header, body: bytes, fds: list[int]
    ) -> wire.Header | None:
        """Has a child do what an order says, and reports.

        Args:
            made: The child, which is dead and reaped afterwards.
            order: The order.
            body: The same, as it came.
            fds: Its descriptors; closed here.

        Returns:
            The report, or None if the child had been killed while it waited, which is no run's
            fault; `fds` are open then, and the child is cleared away.

        Raises:
            ChildFailedError: If it cannot be given the order; the same holds.
        """
        limits = order["limits"]
        is_exec = made.measure.kind == "exec"
        payload_bytes = os.fstat(fds[0]).st_size
        if self._group is not None:
            # What the order brings along lies in the working folder, and for a moment in memory.
            payload_mib = payload_bytes * 2 // _MIB + 1
            extra = max(_CGROUP_SLACK_BYTES, payload_mib * _MIB)
            self._limit_group(limits["memory_mib"] * _MIB + extra, limits["num_processes"], is_exec)
        start = time.monotonic()
        used_before_ms = cpu_used_ms(made.pid)
        try:
            if self._limits_children and not is_exec:
                jail.set_limits(jail.limits_of_order(self._plan, limits, payload_bytes), made.pid)
            self._has_begun = True
            wire.send_body(made.channel, body, fds)
            made.channel.shutdown(_socket.SHUT_WR)  # it has heard all that it ever will
        except OSError as error:
            self._has_begun = False
            self._nursery.discard(made)
            if isinstance(error, ProcessLookupError | ConnectionError):
                return None
            raise ChildFailedError(f"a waiting child cannot be given an order: {error}") from error
        _close_all(fds)  # or the other end of a pair would not see that this one has ended
        watched = watch(
            made.pid,
            # The init of an exec run counts its program's time itself.
            cpu_ms=limits["cpu_ms"] + (_INIT_GRACE_MS if is_exec else 0),
            wall_ms=limits["wall_ms"] + (_INIT_GRACE_MS if is_exec else 0),
            used_before_ms=used_before_ms,
            hangup_fds=(self._control.fileno(), *self._nursery.forker_fds),
            reap=self._nursery.reaper(made),
        )
        if watched.ending is Ending.ABANDONED:
            if select.select(self._nursery.forker_fds, [], [], 0)[0]:
                self._end_slot()
            raise EOFError("the grader is gone")
        started, report, note = _last_words(
            made.channel, trusted=is_exec, noted=is_exec or watched.wait_status != 0
        )
        reply: wire.Header = {
            "ending": watched.ending,
            "wait_status": watched.wait_status,
            "cpu_ms": watched.cpu_ms,
            "peak_kib": watched.peak_kib,
            "wall_ms": (time.monotonic() - start) * 1000,
            "oom": self._has_run_out_of_memory(watched.wait_status, is_exec=is_exec),
            "note": note,
        }
        if is_exec and self._group is not None:
            reply["peak_kib"] = max(reply["peak_kib"], self._group.peak_bytes() >> 10)
        if "error" in report or not started:
            reply["failure"] = report.get("error", "the child ended before the program started")
        elif is_exec:
            if "ending" in report:
                reply |= report
            elif watched.ending is Ending.EXITED and not reply["oom"]:
                reply["failure"] = "the init of the run ended without a report"
        elif (
            self._nested
            and watched.ending is Ending.EXITED
            and watched.wait_status == signal.SIGKILL
            and not reply["oom"]
        ):
            # The first process of a pid namespace cannot kill itself.
            reply["failure"] = "the program was killed from outside the sandbox"
        if order["fetch"]:
            reply["fetched_fds"] = collect(made.work_fd, order["fetch"], limits["disk_mib"] * _MIB)
        return reply

    def _limit_group(self, memory_bytes: int, num_processes: int, is_exec: bool) -> None:
        assert self._group is not None
        # Those that wait for later orders are in the group already.
        limited = memory_bytes, num_processes + is_exec + self._nursery.num_waiting
        if limited != self._limited:
            self._group.set_limits(*limited)
            self._limited = limited
        if is_exec:
            self._group.reset_peak()

    def _has_run_out_of_memory(self, wait_status: int, *, is_exec: bool) -> bool:
        """Whether the kernel has killed a process of the group since this was last asked.

        That of a python run is alone, and has been killed then.
        """
        if self._group is None or not (is_exec or wait_status == signal.SIGKILL):
            return False
        before, self._num_oom_kills = self._num_oom_kills, self._group.oom_kills()
        return self._num_oom_kills > before


def _measure(kind: str, limits: dict[str, int]) -> Measure:
    return Measure(kind, limits["disk_mib"] * _MIB, limits["num_files"])


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _last_words(
    channel: _socket.socket, *, trusted: bool, noted: bool
) -> tuple[bool, wire.Header, str]:
    """Whether the program was started, what else the child has said, and the harness's note.

    Args:
        channel: To the child, which is dead.
        noted: Whether to look for more once it has said that the program was started.
        trusted: Whether nobody but this sandbox's own code could write to the other end once the
            program had been started.
    """
    started = False
    report: wire.Header = {}
    while True:
        try:
            body = channel.recv(wire.MAX_HEADER_BYTES, _DONTWAIT)
        except (BlockingIOError, ConnectionError):
            body = b""
        if not body:
            return started, report, ""
        if started and not trusted:
            return started, report, body.decode() if body in harness.NOTES else ""
        if body == child.STARTED:
            started = True
            if not noted:
                return started, report, ""
        else:
            report |= wire.decode(body)
