"""Mount namespaces made ahead of need: each a copy of the slot's with a working folder of its own.

The supervisor makes them, because it never forks for a run: what it touches need not be copied. A
child is then born into its room. The supervisor keeps a descriptor of it until the run has been
answered, so that taking the mounts apart, which waits for other processors, delays no answer.
"""

from __future__ import annotations

import os

from rewardsvc.verifiers.sandbox import linux, rootfs

_FLAGS = os.O_RDONLY | os.O_CLOEXEC


class Rooms:
    """Makes mount namespaces."""

    def __init__(self, ns_dir_fd: int, *, owner: int, hide_proc: bool) -> None:
        """Remembers the namespace that the caller is in, of which all others will be copies.

        Args:
            ns_dir_fd: The caller's /proc/self/ns.
            owner: User and group of working folders; -1 for the caller.
            hide_proc: Whether the namespace has a /proc, which Python programs do not get to see.
        """
        self._ns_dir_fd = ns_dir_fd
        self._owner = owner
        self._hide_proc = hide_proc
        self._home_fd = self._current()

    def _current(self) -> int:
        return os.open("mnt", _FLAGS, dir_fd=self._ns_dir_fd)

    def make(self, disk_bytes: int, num_files: int, *, executable: bool) -> tuple[int, int]:
        """A new one; descriptors of its working folder and of itself, which are the caller's.

        Args:
            disk_bytes: Size of the working folder.
            num_files: How many files and folders fit into it.
            executable: Whether it is for a run that executes programs: these get a /proc of their
                own, and may be run from the working folder.

        Raises:
            OSError: If the kernel refuses.
        """
        linux.unshare(linux.CLONE_NEWNS)
        try:
            rootfs.mount_work_dir(disk_bytes, num_files, executable=executable, owner=self._owner)
            if self._hide_proc and not executable:
                rootfs.hide_proc()
            work_fd = os.open(rootfs.WORK_DIR, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return work_fd, self._current()
        finally:
            linux.setns(self._home_fd, linux.CLONE_NEWNS)
