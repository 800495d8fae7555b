"""Landlock: which files a run may touch, enforced by the kernel apart from the mounts.

The mounts decide what exists; this decides again what may be done with it, so that a mistake in
either is caught by the other. From ABI 4 on it also denies TCP, from ABI 6 on abstract sockets and
signals to processes outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from rewardsvc.verifiers.sandbox import linux

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_IOCTL_DEV = 1 << 15
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
# Number of file rights by ABI version: each version knows those of the ones before.
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NUM_RIGHTS_NEWEST = 16
_NET_BIND_CONNECT_TCP = 3
_SCOPE_ABSTRACT_SOCKETS_SIGNALS = 3

READ_ONLY = _EXECUTE | _READ_FILE | _READ_DIR


def prepare(readable: Iterable[str], writable: Iterable[str], devices: Iterable[str]) -> int:
    """A ruleset that allows these paths and nothing else; its descriptor, for `restrict`.

    Args:
        readable: Folders to read and execute from.
        writable: Folders to do anything in but make devices and sockets. A rule is bound to the
            inode and holds for what is mounted below it later, but not for what is mounted on it.
        devices: Device files to read and write.

    Raises:
        OSError: If the kernel refuses.
    """
    everything = (1 << _NUM_RIGHTS.get(linux.landlock_abi(), _NUM_RIGHTS_NEWEST)) - 1
    ruleset = linux.landlock_create(
        everything, _NET_BIND_CONNECT_TCP, _SCOPE_ABSTRACT_SOCKETS_SIGNALS
    )
    for path in readable:
        of_files = _EXECUTE | _READ_FILE  # the kernel refuses a folder's rights on a file
        # A path that this user cannot enter anyway needs no rule.
        with contextlib.suppress(PermissionError):
            rights = READ_ONLY if Path(path).is_dir() else of_files
            linux.landlock_allow(ruleset, path, rights)
    special = _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _IOCTL_DEV
    for path in writable:
        linux.landlock_allow(ruleset, path, everything & ~special)
    for path in devices:
        linux.landlock_allow(ruleset, path, _READ_FILE | _WRITE_FILE)
    return ruleset


def restrict(ruleset: int) -> None:
    """Holds this process and its children to a ruleset; needs `linux.set_no_new_privs` first."""
    linux.landlock_call(ruleset).make()
