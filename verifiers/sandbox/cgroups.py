"""Memory and pids cgroups, of version 1 or 2, where this process may make them.

A slot owns one group in each hierarchy, made once and used run after run: the supervisor attaches
each child by a descriptor that was opened before privileges were dropped. The names carry the
pid of the owner, so that groups of an owner that was killed are recognised and swept away.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_PREFIX = "rewardsvc-sandbox-"
_REMOVE_ATTEMPTS = 50
_REMOVE_PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """Names of the files that differ between the versions."""

    memory_limit: str
    swap_limit: str
    memory_peak: str
    oom_events: str


_FILES = {
    1: _Files(
        memory_limit="memory.limit_in_bytes",
        swap_limit="memory.memsw.limit_in_bytes",
        memory_peak="memory.max_usage_in_bytes",
        oom_events="memory.oom_control",
    ),
    2: _Files(
        memory_limit="memory.max",
        swap_limit="memory.swap.max",
        memory_peak="memory.peak",
        oom_events="memory.events",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupHome:
    """Where groups can be made.

    Attributes:
        version: 1 or 2.
        memory: Folder below which memory groups are made.
        pids: Folder below which pids groups are made; the same with version 2.
    """

    version: int
    memory: Path
    pids: Path


@dataclass(slots=True)
class Cgroup:
    """The groups of one slot, as descriptors that still work after the jail is closed.

    Attributes:
        version: 1 or 2.
        folders: The groups' folders.
        attach_fds: Writing a process id to each puts that process into the group.
        limit_fd, swap_fd, peak_fd, oom_fd, pids_fd: Control files; -1 where the kernel lacks one.
    """

    version: int
    folders: list[Path]
    attach_fds: list[int] = field(default_factory=list)
    limit_fd: int = -1
    swap_fd: int = -1
    peak_fd: int = -1
    oom_fd: int = -1
    pids_fd: int = -1

    def attach(self, pid: int) -> None:
        """Puts a process, and those that it will start, into the groups.

        Raises:
            OSError: If it is gone, or the kernel refuses.
        """
        for fd in self.attach_fds:
            os.write(fd, b"%d" % pid)

    def set_limits(self, memory_bytes: int, num_processes: int) -> None:
        """Sets what the group as a whole may use."""
        memory = str(memory_bytes).encode()
        # Version 1 refuses a limit above the one of memory and swap together, so lowering starts
        # with memory and raising with the sum: either order works when both are tried twice.
        for fd in (self.limit_fd, self.swap_fd, self.limit_fd):
            if fd >= 0:
                value = b"0" if self.version == 2 and fd == self.swap_fd else memory
                with contextlib.suppress(OSError):
                    os.pwrite(fd, value, 0)
        os.pwrite(self.pids_fd, str(num_processes).encode(), 0)
        if os.pread(self.limit_fd, 64, 0).strip() != memory:
            raise OSError(f"the memory cgroup did not take a limit of {memory_bytes} bytes")

    def oom_kills(self) -> int:
        """How many processes of the group the kernel has killed for want of memory."""
        for line in os.pread(self.oom_fd, 4096, 0).splitlines():
            name, _, value = line.partition(b" ")
            if name == b"oom_kill":
                return int(value)
        return 0

    def reset_peak(self) -> None:
        """Starts the measurement of the peak anew, where the kernel can."""
        if self.version == 1 and self.peak_fd >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self.peak_fd, b"0", 0)

    def peak_bytes(self) -> int:
        """The group's peak since `reset_peak`, or 0 where the kernel does not say."""
        if self.version != 1 or self.peak_fd < 0:
            return 0
        return int(os.pread(self.peak_fd, 64, 0))

    def remove(self) -> None:
        """Removes the groups; its processes are dead, but the kernel may take a moment to agree."""
        for folder in self.folders:
            remove_folder(folder)


def remove_folder(folder: Path) -> bool:
    """Removes one group; False if it stays busy."""
    for _ in range(_REMOVE_ATTEMPTS):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            time.sleep(_REMOVE_PAUSE_SECONDS)
        else:
            return True
    return False


def group_folders(home: CgroupHome, owner_pid: int) -> list[Path]:
    """The folders of the groups of one slot."""
    return [Path(p) / f"{_PREFIX}{owner_pid}" for p in dict.fromkeys((home.memory, home.pids))]


def find_home() -> CgroupHome | None:
    """Where this process can make groups that limit memory and processes; None if nowhere."""
    mine = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            mine.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    mounts: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, target, kind, options, *_ = line.split(" ")
            if kind == "cgroup2":
                mounts.setdefault("", Path(target))
            elif kind == "cgroup":
                for option in options.split(","):
                    mounts.setdefault(option, Path(target))
    if "memory" in mounts and "pids" in mounts:
        for memory in (mounts["memory"] / mine.get("memory", ""), mounts["memory"]):
            for pids in (mounts["pids"] / mine.get("pids", ""), mounts["pids"]):
                home = CgroupHome(version=1, memory=memory, pids=pids)
                if _usable(home):
                    return home
    if "" in mounts:
        own = mounts[""] / mine.get("", "")
        for folder in (own, own.parent if own != mounts[""] else own, mounts[""]):
            home = CgroupHome(version=2, memory=folder, pids=folder)
            if _usable(home):
                return home
    return None


def _usable(home: CgroupHome) -> bool:
    """Whether a group can be made there, with limits, and removed."""
    try:
        # Threads number like processes, and two of them may try at the same time.
        group = create(home, threading.get_native_id())
    except OSError:
        return False
    try:
        group.set_limits(1 << 30, 1 << 10)
    except OSError:
        return False
    finally:
        close(group)
        group.remove()
    return True


def create(home: CgroupHome, owner_pid: int) -> Cgroup:
    """Makes the groups of one slot.

    Raises:
        OSError: If they cannot be made; nothing is left behind.
    """
    names = _FILES[home.version]
    group = Cgroup(home.version, group_folders(home, owner_pid))
    try:
        for folder in group.folders:
            folder.mkdir(exist_ok=True)
            group.attach_fds.append(_open(folder / "cgroup.procs", os.O_WRONLY))
        memory, pids = group.folders[0], group.folders[-1]
        group.limit_fd = _open(memory / names.memory_limit, os.O_RDWR)
        group.oom_fd = _open(memory / names.oom_events, os.O_RDONLY)
        group.pids_fd = _open(pids / "pids.max", os.O_RDWR)
        with contextlib.suppress(OSError):  # kernels without swap accounting
            group.swap_fd = _open(memory / names.swap_limit, os.O_RDWR)
        with contextlib.suppress(OSError):  # before Linux 5.19
            mode = os.O_RDWR if home.version == 1 else os.O_RDONLY
            group.peak_fd = _open(memory / names.memory_peak, mode)
    except OSError:
        close(group)
        group.remove()
        raise
    return group


def _open(path: Path, mode: int) -> int:
    return os.open(path, mode | os.O_CLOEXEC)


def close(group: Cgroup) -> None:
    """Closes the descriptors."""
    fds = (group.limit_fd, group.swap_fd, group.peak_fd, group.oom_fd, group.pids_fd)
    for fd in (*group.attach_fds, *fds):
        if fd >= 0:
            os.close(fd)


def sweep(home: CgroupHome) -> None:
    """Removes groups whose owner is gone."""
    for parent in {home.memory, home.pids}:
        for folder in parent.glob(f"{_PREFIX}*"):
            owner = folder.name.removeprefix(_PREFIX)
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()
