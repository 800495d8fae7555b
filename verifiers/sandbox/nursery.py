"""The children of one slot that wait for an order, as the supervisor sees them."""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from rewardsvc.verifiers.sandbox import cgroups, rootfs, watch, wire
from rewardsvc.verifiers.sandbox.forker import Forker
from rewardsvc.verifiers.sandbox.jail import JailPlan
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.rooms import Room, Rooms
from rewardsvc.verifiers.sandbox.stragglers import remove_tree

NUM_WARM = 2
"""Children of the latest kind that wait, so that the next order need not wait for one while the one
after the last is being made."""

_READY_TIMEOUT_SECONDS = 30.0
# The sockets of the module `socket` are these in a wrapper whose making costs ten microseconds.
_socketpair = _socket.socketpair


class ChildFailedError(Exception):
    """A child could not put on its jail."""


class Measure(NamedTuple):
    """What tells children of one slot apart before they have an order.

    Attributes:
        kind: "python" or "exec".
        disk_bytes: Size of the working folder.
        num_files: Inodes of the working folder.
    """

    kind: str
    disk_bytes: int
    num_files: int


@dataclass(slots=True, eq=False)
class Child:
    """A child that waits for an order, or carries one out.

    Attributes:
        measure: What it was made to.
        folder: Its working folder, as it sees it.
        channel: To it.
        room: Its mount namespace, if it has one.
        work_fd: Its working folder, which outlives it as long as this is open.
        pid: In the supervisor's pid namespace; 0 until the forking process has told, below 0 if it
            could not fork.
        ready: Whether its jail is known to be on.
    """

    measure: Measure
    folder: str
    channel: _socket.socket
    room: Room | None
    work_fd: int
    pid: int = 0
    ready: bool = False


class Nursery:
    """Asks for children ahead of need and hands them out.

    Without a pid namespace there is at most one child at a time: the only way to find the daemons
    of a run is then to kill all that the forking process has left.
    """

    def __init__(
        self,
        plan: JailPlan,
        rooms: Rooms | None,
        group: cgroups.Cgroup | None,
        scratch: str,
        proc_fd: int,
    ) -> None:
        """Asks for nothing yet.

        Args:
            plan: What python children wear; others wear the same but for the ruleset.
            rooms: Makes their mount namespaces, if they have any.
            group: The slot's cgroups, if any.
            scratch: Where working folders are made if there are no mount namespaces.
            proc_fd: See `forking.serve`; the caller's to close.
        """
        self._plans = {"python": plan, "exec": replace(plan, kind="exec", ruleset=-1)}
        self._rooms = rooms
        self._group = group
        self._scratch = scratch
        self._nested = Layer.PID_NS in plan.layers
        self._num_folders = 0
        self._waiting: list[Child] = []
        # Not before it is needed: who runs nothing but Python needs no second one.
        self._forkers = {"python": Forker(plan, proc_fd)}

    @property
    def forker_fds(self) -> list[int]:
        """If one becomes readable, a forking process was killed. The slot must end then: nobody
        could reap its children."""
        return [forker.pidfd for forker in self._forkers.values()]

    @property
    def num_waiting(self) -> int:
        """Children that are asked for and not taken."""
        return len(self._waiting)

    def prepare(self, measure: Measure) -> None:
        """Asks for as many children as shall wait, and does not wait for them."""
        ready = sum(child.measure == measure for child in self._waiting)
        for _ in range((NUM_WARM if self._nested else 1) - ready):
            self._ask(measure)

    def take(self, measure: Measure) -> Child:
        """The oldest child made to `measure`, with its jail on; it may have been killed since.

        Raises:
            ChildFailedError: If the jail cannot be put on.
        """
        for child in [child for child in self._waiting if child.measure != measure]:
            if child.measure.kind == measure.kind or not self._nested:
                self.learn(child)
                self._waiting.remove(child)
                self.discard(child)
        found = next((child for child in self._waiting if child.measure == measure), None)
        found = found or self._ask(measure)
        self.learn(found)
        self._waiting.remove(found)
        if not found.ready:
            self._await_jail(found)
        return found

    def _await_jail(self, child: Child) -> None:
        header: wire.Header
        try:
            if child.pid < 0:
                header = {"error": f"cannot fork: {os.strerror(-child.pid)}"}
            else:
                header, _ = wire.receive(child.channel)
        except TimeoutError:
            header = {"error": f"the jail took over {_READY_TIMEOUT_SECONDS:.0f} s"}
        except EOFError:
            header = {"error": "the child ended before it was ready"}
        if "error" in header:
            self.discard(child)
            raise ChildFailedError(header["error"])
        child.ready = True

    def give_back(self, child: Child) -> None:
        """Puts back one that was taken and not used."""
        self._waiting.insert(0, child)

    def _ask(self, measure: Measure) -> Child:
        kind = measure.kind
        if kind not in self._forkers:
            self._forkers[kind] = Forker(self._plans[kind])
        room = None
        if self._rooms is None:
            folder = self._make_folder()
            work_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            folder = rootfs.WORK_DIR
            room = self._rooms.take(
                measure.disk_bytes, measure.num_files, executable=kind == "exec"
            )
            work_fd = room.work_fd
        room_fd = room.ns_fd if room is not None else -1
        ours, theirs = _socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._forkers[kind].ask(folder, theirs.fileno(), room_fd)
        finally:
            theirs.close()
        ours.settimeout(_READY_TIMEOUT_SECONDS)
        child = Child(measure, folder, ours, room, work_fd)
        self._waiting.append(child)
        return child

    def _make_folder(self) -> str:
        self._num_folders += 1
        folder = f"{self._scratch}/{self._num_folders}"
        os.mkdir(folder, mode=0o700)  # noqa: PTH102 - as everywhere here, by its text
        uid = self._plans["python"].uid
        if uid >= 0:
            os.chown(folder, uid, uid)
        return folder

    def learn(self, child: Child) -> None:
        """Makes sure that a waiting child's process id is known, and that it is in the cgroups."""
        for one in self._waiting:
            if one.measure.kind == child.measure.kind and one.pid == 0:
                one.pid = self._forkers[one.measure.kind].forked_pid()
                if one.pid > 0 and self._group is not None:
                    self._group.attach(one.pid)
            if one is child:
                return

    def settle(self, until_fd: int) -> None:
        """Learns what there is to learn of those that were asked for.

        Joining a cgroup may have to wait for all processors, ten milliseconds if it comes after a
        pause: better now than when an order is there.

        Args:
            until_fd: Leaves the rest for later as soon as this is readable; -1 for never.
        """
        for child in [child for child in self._waiting if child.pid == 0]:
            forker_fd = self._forkers[child.measure.kind].fileno()
            fds = [forker_fd] if until_fd < 0 else [forker_fd, until_fd]
            if until_fd in select.select(fds, [], [])[0]:
                return
            self.learn(child)

    def reaper(self, child: Child) -> Callable[[int], watch.Usage]:
        """Waits for a child that is dead or about to be, and ends what it has left behind."""
        return self._forkers[child.measure.kind].reap

    def kill(self, child: Child) -> None:
        """Ends a child that was not reaped."""
        if child.pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            self.reaper(child)(child.pid)

    def discard(self, child: Child) -> None:
        """Ends a child that was not reaped, and closes what belongs to it."""
        self.kill(child)
        self.close(child)

    def close(self, child: Child) -> None:
        """Closes what belongs to a child that was reaped."""
        child.channel.close()
        if self._rooms is not None and child.room is not None:
            self._rooms.give_back(child.room)
        else:
            os.close(child.work_fd)
            remove_tree(child.folder)
