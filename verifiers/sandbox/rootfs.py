"""The file system that a run sees: a read-only skeleton of the host's, and nothing of its data.

An empty tmpfs becomes the root. System folders are bound into it where they are on the host, so
that interpreters and compilers find themselves; everything else (home folders, /etc but for a
handful of files, /proc, /sys, sockets, other mounts) does not exist there. The whole is then made
read-only. Each run mounts its own small tmpfs on `WORK_DIR`, the one place that it can write to.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rewardsvc.verifiers.sandbox import linux

WORK_DIR = "/sandbox/home"
"""Working folder of every run; also its TMPDIR and HOME."""

WORK_PARENT = "/sandbox"
"""Holds nothing but the working folder; what may be written below it, may be written there."""

_EMPTY_DIR = "/sandbox/empty"

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
"""The only device files in the jail."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# What the dynamic loader, Debian's alternatives and Java's configuration need.
_ETC = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives")
_ETC_PREFIXES = ("java-",)
_USERS = "root:x:0:0::/:/bin/false\nsandbox:x:1000:1000::/sandbox/home:/bin/false\n"
_BUILD_POINT = "/tmp"  # noqa: S108 - a mount point in a private namespace; nothing is written to it


def system_paths(extra: Iterable[str] = ()) -> list[str]:
    """Folders and files of the host that the jail shows, as far as they exist.

    Args:
        extra: Absolute paths of compilers' and interpreters' own folders.
    """
    paths = [*_SYSTEM, *_ETC, sys.base_prefix, sys.base_exec_prefix, *extra]
    etc = Path("/etc")
    paths += [str(p) for prefix in _ETC_PREFIXES for p in sorted(etc.glob(f"{prefix}*"))]
    kept: list[str] = []
    for path in dict.fromkeys(str(Path(p)) for p in paths):
        covered = any(Path(path).is_relative_to(k) for k in kept)
        if not covered and os.path.lexists(path):
            kept.append(path)
    return kept


def build(paths: Iterable[str], *, scratch_bytes: int = 16 << 20) -> str:
    """Builds the tree in the current mount namespace, which must be private.

    Args:
        paths: What to show of the host, from `system_paths`.
        scratch_bytes: Size of the tmpfs that carries the mount points.

    Returns:
        Where it stands.

    Raises:
        OSError: If the kernel refuses a mount.
    """
    # Folders that lie below the point where the tree is built must be opened before it covers them.
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW) for path in paths}
    devices = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in DEVICES}
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", _BUILD_POINT, "tmpfs", flags, data=f"size={scratch_bytes},mode=755")
    root = Path(_BUILD_POINT)
    for folder in ("/dev", "/etc", "/proc", _EMPTY_DIR, WORK_DIR):
        (root / folder.lstrip("/")).mkdir(mode=0o755, parents=True)
    (root / "etc/passwd").write_text(_USERS)
    for path, fd in {**sources, **devices}.items():
        target = root / path.lstrip("/")
        if path.startswith("/etc/"):
            _copy(Path(f"/proc/self/fd/{fd}"), target)
        else:
            _bind(fd, path, target)
        os.close(fd)
    if not (root / "tmp").exists():
        (root / "tmp").symlink_to(WORK_DIR.lstrip("/"))
    linux.make_read_only(str(root), nodev=False)
    return str(root)


def _copy(source: Path, target: Path) -> None:
    """Copies small files and links, instead of a mount that every run would have to copy."""
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for entry in source.iterdir():
            if entry.is_symlink():
                (target / entry.name).symlink_to(entry.readlink())
            else:
                _copy(entry, target / entry.name)
    elif source.is_file():
        with contextlib.suppress(PermissionError):
            target.write_bytes(source.read_bytes())


def _bind(fd: int, path: str, target: Path) -> None:
    """Shows what `fd` refers to at `target`: a link as the same link, anything else by a mount."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = f"/proc/self/fd/{fd}"
    if Path(path).is_symlink():
        target.symlink_to(Path(path).readlink())
        return
    if Path(source).is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    linux.mount(source, str(target), "", linux.MS_BIND | linux.MS_REC)


def enter(root: str, *, with_proc: bool) -> None:
    """Makes the tree, perhaps built in an outer namespace, the root of this one, for good.

    Args:
        root: From `build`.
        with_proc: Whether to leave a /proc of this pid namespace in it. Programs do not see it, but
            the kernel lets a nested namespace mount its own only where it finds one already.
    """
    # A mount that came from an outer namespace is locked in place; one bound onto itself is not.
    linux.mount(root, root, "", linux.MS_BIND | linux.MS_REC)
    if with_proc:
        mount_proc(f"{root}/proc")
    linux.pivot_root(root)


def mount_proc(target: str = "/proc") -> None:
    """Mounts a /proc that shows the processes of this pid namespace and nothing else."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", target, "proc", flags, data="subset=pid,hidepid=2")


def hide_proc() -> None:
    """Covers /proc with an empty folder; a mount of an outer namespace cannot be taken away."""
    linux.mount(_EMPTY_DIR, "/proc", "", linux.MS_BIND)


def mount_work_dir(size_bytes: int, num_files: int, *, executable: bool, owner: int = -1) -> None:
    """Gives this mount namespace a working folder of its own.

    Args:
        size_bytes: What fits into it.
        num_files: How many files and folders fit into it.
        executable: Whether programs can be run from it.
        owner: User and group that it belongs to; -1 for the caller.
    """
    _work_dir_call(size_bytes, num_files, executable, owner).make()


@functools.lru_cache(maxsize=16)
def _work_dir_call(size_bytes: int, num_files: int, executable: bool, owner: int) -> linux.Call:
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOATIME
    flags |= 0 if executable else linux.MS_NOEXEC
    # The folder itself is an inode too.
    options = f"size={size_bytes},nr_inodes={num_files + 1},mode=700"
    if owner >= 0:
        options += f",uid={owner},gid={owner}"
    return linux.mount_call("tmpfs", WORK_DIR, "tmpfs", flags, data=options)
