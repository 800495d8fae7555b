"""Forks children ahead of need, carries orders to them, enforces their limits from outside."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from rewardsvc.verifiers.sandbox import (
    cgroups,
    child,
    harness,
    landlock,
    linux,
    rootfs,
    seccomp,
    wire,
)
from rewardsvc.verifiers.sandbox.child import JailPlan
from rewardsvc.verifiers.sandbox.collect import collect
from rewardsvc.verifiers.sandbox.entry import Entry, enter_namespaces
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.stragglers import kill_descendants, remove_tree
from rewardsvc.verifiers.sandbox.watch import Ending, cpu_used_ms, watch

_MIB = 1 << 20
_INIT_GRACE_MS = 5000
# Room in the cgroup for what a python child holds beside the memory of its program.
_CGROUP_SLACK_BYTES = 48 * _MIB
_MAX_NOTE_BYTES = 4096


@dataclass(slots=True)
class _Child:
    """A child that is ready for an order.

    Attributes:
        pid: In the supervisor's pid namespace.
        plan: What it wears.
        channel: To it.
        note_fd: Where the harness says that memory ran out, or the init that exec failed.
        work_fd: Its working folder, which outlives it as long as this is open.
    """

    pid: int
    plan: JailPlan
    channel: socket.socket
    note_fd: int
    work_fd: int


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
        self._layers = entry.layers
        self._group = group
        self._pidfd = -1
        self._scratch = settings["scratch"]
        self._num_folders = 0
        enter_namespaces(entry)
        if Layer.PID_NS in entry.layers:
            self._pidfd = os.pidfd_open(os.getpid())
        else:
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        if Layer.NO_NEW_PRIVS in entry.layers:
            linux.set_no_new_privs()
        if {Layer.CAPABILITIES, Layer.USER_NS} <= entry.layers:
            linux.empty_bounding_set()
        readable = tuple(p for p in entry.paths if Path(p).exists())
        ruleset = -1
        # Without a mount namespace every child has a folder of its own, and needs rules of its own.
        if {Layer.LANDLOCK, Layer.MOUNT_NS} <= entry.layers and entry.child_uid < 0:
            ruleset = landlock.prepare(readable, [rootfs.WORK_PARENT], rootfs.DEVICES)
        self._plan = JailPlan(
            kind="python",
            layers=entry.layers,
            disk_bytes=settings["limits"]["disk_mib"] * _MIB,
            num_files=settings["limits"]["num_files"],
            work_dir=rootfs.WORK_DIR if Layer.MOUNT_NS in entry.layers else "",
            readable=readable,
            ruleset=ruleset,
            uid=entry.child_uid,
            base_bytes=base_bytes,
            group=group,
        )
        for name in [name for name in sys.modules if name.partition(".")[0] == "rewardsvc"]:
            del sys.modules[name]  # programs have no business with it
        sys.argv[:], sys.orig_argv[:] = [], []  # nor with the paths of the host
        if Layer.SECCOMP in entry.layers:
            seccomp.python_program(child.CONTROL_FD, signals=Layer.PID_NS in entry.layers)
            seccomp.exec_program()
        gc.collect()
        gc.freeze()

    def run(self) -> NoReturn:
        """Serves until the grader hangs up."""
        warm: _Child | None = self._spawn(self._plan)
        wire.send(self._control, {"ready": True})
        while True:
            order, fds = wire.receive(self._control)
            plan = self._plan_for(order)
            if warm is None or warm.plan != plan:
                if warm is not None:
                    self._discard(warm)
                try:
                    warm = self._spawn(plan)
                except _ChildFailedError as error:
                    _close_all(fds)
                    self._answer({"failure": str(error)})
                    warm = None
                    continue
            self._answer(self._carry_out(warm, order, fds))
            warm = self._spawn(self._plan)

    def _plan_for(self, order: wire.Header) -> JailPlan:
        """What the order needs; later children of its kind are made to the same measure."""
        limits = order["limits"]
        disk_bytes, num_files = limits["disk_mib"] * _MIB, limits["num_files"]
        plan = replace(self._plan, kind=order["kind"], disk_bytes=disk_bytes, num_files=num_files)
        if plan.kind == "python":
            self._plan = plan
        return plan

    def _answer(self, reply: wire.Header) -> None:
        fetched = reply.pop("fetched_fds", ())
        wire.send(self._control, reply, fetched)
        _close_all(fetched)

    def _spawn(self, plan: JailPlan) -> _Child:
        """Forks a child and waits until its jail stands."""
        if Layer.MOUNT_NS not in plan.layers:
            plan = replace(plan, work_dir=self._make_work_dir(plan))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        note_read, note_write = os.pipe()
        if self._pidfd >= 0:
            linux.unshare(linux.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            child.main(plan, theirs, note_write)
        if self._pidfd >= 0:
            linux.setns(self._pidfd, linux.CLONE_NEWPID)
        theirs.close()
        os.close(note_write)
        made = _Child(pid, plan, ours, note_read, -1)
        try:
            header, fds = wire.receive(ours)
        except EOFError:
            header, fds = {"error": "the child ended before it was ready"}, []
        if "error" in header:
            self._discard(made)
            raise _ChildFailedError(header["error"])
        made.work_fd = fds[0]
        return made

    def _make_work_dir(self, plan: JailPlan) -> str:
        self._num_folders += 1
        folder = f"{self._scratch}/{self._num_folders}"
        os.mkdir(folder, mode=0o700)  # noqa: PTH102 - as everywhere here, by its text
        if plan.uid >= 0:
            os.chown(folder, plan.uid, plan.uid)
        return folder

    def _discard(self, made: _Child, *, reaped: bool = False) -> None:
        """Ends a child, if it has not ended, and closes what belongs to it."""
        if not reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(made.pid, signal.SIGKILL)
            os.waitpid(made.pid, 0)
        if self._pidfd < 0:
            kill_descendants(os.getpid())
        made.channel.close()
        for fd in (made.note_fd, made.work_fd):
            if fd >= 0:
                os.close(fd)
        if Layer.MOUNT_NS not in self._layers:
            remove_tree(made.plan.work_dir)

    def _carry_out(self, made: _Child, order: wire.Header, fds: list[int]) -> wire.Header:
        limits = order["limits"]
        kills = 0
        if self._group is not None:
            # What the order brings along lies in the working folder, and for a moment in memory.
            payload_mib = os.fstat(fds[0]).st_size * 2 // _MIB + 1
            extra = max(_CGROUP_SLACK_BYTES, payload_mib * _MIB)
            self._group.set_limits(
                limits["memory_mib"] * _MIB + extra,
                limits["num_processes"] + (1 if made.plan.kind == "exec" else 0),
            )
            self._group.reset_peak()
            kills = self._group.oom_kills()
        is_exec = made.plan.kind == "exec"
        start = time.monotonic()
        used_before_ms = cpu_used_ms(made.pid)
        try:
            wire.send(made.channel, order, fds)
        except OSError:
            self._discard(made)
            return {"failure": "the waiting child had been killed"}
        finally:
            # Or the other end of a pair would not see that this one has ended.
            _close_all(fds)
        watched = watch(
            made.pid,
            # The init of an exec run counts its program's time itself.
            cpu_ms=limits["cpu_ms"] + (_INIT_GRACE_MS if is_exec else 0),
            wall_ms=limits["wall_ms"] + (_INIT_GRACE_MS if is_exec else 0),
            used_before_ms=used_before_ms,
            hangup_fd=self._control.fileno(),
        )
        if self._pidfd < 0:
            kill_descendants(os.getpid())
        if watched.ending is Ending.ABANDONED:
            raise EOFError("the grader is gone")
        started, report = _last_words(made.channel)
        os.set_blocking(made.note_fd, False)
        note = b""
        with contextlib.suppress(BlockingIOError):
            note = os.read(made.note_fd, _MAX_NOTE_BYTES)
        reply: wire.Header = {
            "ending": watched.ending,
            "wait_status": watched.wait_status,
            "cpu_ms": watched.cpu_ms,
            "peak_kib": watched.peak_kib,
            "wall_ms": (time.monotonic() - start) * 1000,
            "oom": self._group is not None and self._group.oom_kills() > kills,
            "note": note.decode() if note in harness.NOTES else "",
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
            if note:
                reply["failure"] = f"cannot run the program: {note.decode(errors='replace')}"
        elif (
            self._pidfd >= 0
            and watched.ending is Ending.EXITED
            and watched.wait_status == signal.SIGKILL
            and not reply["oom"]
        ):
            # The first process of a pid namespace cannot kill itself.
            reply["failure"] = "the program was killed from outside the sandbox"
        if order["fetch"]:
            reply["fetched_fds"] = collect(made.work_fd, order["fetch"], limits["disk_mib"] * _MIB)
        self._discard(made, reaped=True)
        return reply


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


class _ChildFailedError(Exception):
    """A child could not put on its jail."""


def _last_words(channel: socket.socket) -> tuple[bool, wire.Header]:
    """Whether the program was started, and what else the child has said."""
    started = False
    report: wire.Header = {}
    channel.setblocking(False)
    while True:
        try:
            header, _ = wire.receive(channel)
        except (EOFError, BlockingIOError):
            return started, report
        started = started or "started" in header
        report |= header
