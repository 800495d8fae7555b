"""Cleans up after a run where no pid namespace ends its processes and no tmpfs holds its files."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_MAX_ROUNDS = 1000


def kill_descendants(ancestor: int) -> None:
    """Kills and reaps all children of this process, which is the reaper of their orphans.

    A process that forks while it is hunted leaves a child behind, which is then found in the next
    round; the limit on processes makes sure that it runs out of them.

    Args:
        ancestor: This process's own id.
    """
    for _ in range(_MAX_ROUNDS):
        children = _children(ancestor)
        if not children:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children(parent: int) -> list[int]:
    """Direct children, from the fourth field of /proc/*/stat."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.append(int(folder.name))
    return found


def remove_tree(folder: str) -> None:
    """Removes a folder and what is in it, as far as that can be done; follows no link.

    `shutil` would do it too, and would make every fork of the supervisor dearer by what it imports.
    """
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            with contextlib.suppress(OSError):
                Path(path, name).unlink()
        for name in folders:
            child = Path(path, name)
            with contextlib.suppress(OSError):
                child.unlink() if child.is_symlink() else child.rmdir()
    with contextlib.suppress(OSError):
        Path(folder).rmdir()
