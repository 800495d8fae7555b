"""Mount namespaces made ahead of need: each a copy of the slot's with a working folder of its own.

The supervisor makes them, because it never forks for a run: what it touches need not be copied. A
child is then born into its room. The supervisor keeps descriptors of it until the run has been
answered, so that taking the mounts apart, which waits for other processors, delays no answer.

Making a room and taking it apart is a sixth of what a run costs, and most programs never touch
their working folder. A room that a run has left as it found it is given to a later one. That it has
is not judged by looks: the kernel reports every change to the folder, and where nothing was made in
it there is nothing else that could have changed. Three more things must hold for that. Nothing may
be made in it without a name (the filter of Python runs denies O_TMPFILE), nothing may be noted by
reading (it is mounted without times of access), and whoever could still change it must be dead (so
there must be a pid namespace).
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass

from rewardsvc.verifiers.sandbox import linux, rootfs

_FLAGS = os.O_RDONLY | os.O_CLOEXEC
# A new name, one less, another mode, owner or time, and whatever else is no mere look at it.
_IN_MODIFY, _IN_ATTRIB, _IN_CLOSE_WRITE = 0x002, 0x004, 0x008
_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x040, 0x080, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF = 0x400, 0x800
_IN_Q_OVERFLOW, _IN_ONLYDIR = 0x4000, 0x0100_0000
_CHANGES = (
    _IN_MODIFY
    | _IN_ATTRIB
    | _IN_CLOSE_WRITE
    | _IN_MOVED_FROM
    | _IN_MOVED_TO
    | _IN_CREATE
    | _IN_DELETE
    | _IN_DELETE_SELF
    | _IN_MOVE_SELF
)
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_MAX_EVENT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Room:
    """A mount namespace for one child at a time.

    Attributes:
        size: Bytes and inodes of its working folder, and whether programs may be run from it.
        work_fd: Its working folder.
        ns_fd: The namespace.
        watch: What the kernel calls it when it reports a change; -1 if it is for one child only.
    """

    size: tuple[int, int, bool]
    work_fd: int
    ns_fd: int
    watch: int


class Rooms:
    """Makes mount namespaces, and keeps those that can be used again."""

    def __init__(self, ns_dir_fd: int, *, owner: int, hide_proc: bool, reuse: bool) -> None:
        """Remembers the namespace that the caller is in, of which all others will be copies.

        Args:
            ns_dir_fd: The caller's /proc/self/ns.
            owner: User and group of working folders; -1 for the caller.
            hide_proc: Whether the namespace has a /proc, which Python programs do not get to see.
            reuse: Whether rooms of Python runs may be used again; see the module.
        """
        self._ns_dir_fd = ns_dir_fd
        self._owner = owner
        self._home_fd = self._plain_fd = self._current()
        if hide_proc:
            linux.unshare(linux.CLONE_NEWNS)
            rootfs.hide_proc()
            self._plain_fd = self._current()
            linux.setns(self._home_fd, linux.CLONE_NEWNS)
        self._reports_fd = -1
        if reuse:
            with contextlib.suppress(OSError):  # this user may have no more of these
                self._reports_fd = linux.inotify()
        self._clean: list[Room] = []
        self._watches: set[int] = set()
        self._changed: set[int] = set()

    def _current(self) -> int:
        return os.open("mnt", _FLAGS, dir_fd=self._ns_dir_fd)

    def take(self, disk_bytes: int, num_files: int, *, executable: bool) -> Room:
        """A room whose working folder is as new.

        Args:
            disk_bytes: Size of the working folder.
            num_files: How many files and folders fit into it.
            executable: Whether it is for a run that executes programs: these get a /proc of their
                own, and may be run from the working folder.

        Raises:
            OSError: If the kernel refuses.
        """
        size = disk_bytes, num_files, executable
        while self._clean:
            room = self._clean.pop()
            if room.size == size:
                return room
            self._take_apart(room)
        if not executable:
            linux.setns(self._plain_fd, linux.CLONE_NEWNS)
        linux.unshare(linux.CLONE_NEWNS)
        try:
            rootfs.mount_work_dir(disk_bytes, num_files, executable=executable, owner=self._owner)
            watch = -1 if executable else self._watch()
            work_fd = os.open(rootfs.WORK_DIR, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return Room(size, work_fd, self._current(), watch)
        finally:
            linux.setns(self._home_fd, linux.CLONE_NEWNS)

    def _watch(self) -> int:
        if self._reports_fd < 0:
            return -1
        try:
            watch = linux.watch_folder(self._reports_fd, rootfs.WORK_DIR, _CHANGES | _IN_ONLYDIR)
        except OSError:
            return -1
        self._watches.add(watch)
        return watch

    def give_back(self, room: Room) -> None:
        """Keeps a room, whose child is dead, for another one if nothing in it has changed."""
        self._read_reports()
        if room.watch >= 0 and room.watch not in self._changed:
            self._clean.append(room)
        else:
            self._take_apart(room)

    def _read_reports(self) -> None:
        """Notes which rooms have changed since this was last asked."""
        if self._reports_fd < 0:
            return
        while True:
            try:
                events = os.read(self._reports_fd, _MAX_EVENT_BYTES)
            except BlockingIOError:
                return
            offset = 0
            while offset < len(events):
                watch, mask, _, length = _EVENT.unpack_from(events, offset)
                offset += _EVENT.size + length
                if mask & _IN_Q_OVERFLOW:  # there was more to report than could be kept
                    self._changed |= self._watches
                elif watch in self._watches:
                    self._changed.add(watch)

    def _take_apart(self, room: Room) -> None:
        if room.watch >= 0:
            with contextlib.suppress(OSError):  # it ends with the folder, too
                linux.unwatch_folder(self._reports_fd, room.watch)
            self._watches.discard(room.watch)
            self._changed.discard(room.watch)
        os.close(room.work_fd)
        os.close(room.ns_fd)
