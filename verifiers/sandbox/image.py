"""What a slot's interpreter holds in memory before the first process is forked.

What it holds is what each fork has to copy the tables of, and each exit to take apart.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from rewardsvc.verifiers.sandbox import atfork
from rewardsvc.verifiers.sandbox.boot import ENVIRONMENT, START_ENVIRONMENT

PRELOADED = (  # noqa: SIM905
    "bisect collections copy dataclasses datetime decimal enum fractions functools heapq itertools "
    "json math operator random re string threading traceback typing"
).split()
"""Modules of the standard library that a program finds already imported. Each costs every run a few
page tables and page faults, so these are the ones that programs do import."""
_READ_EXECUTE = 1 | 4
"""Of mprotect(2)."""


def main(socket_fd: str, settings_json: str) -> NoReturn:
    """Imports what programs find imported, then becomes the keeper of a slot: see `zygote`."""
    settings = json.loads(settings_json)
    failure: BaseException | None = None
    try:
        _preload(settings["preload"], settings["python_path"])
    except BaseException as error:
        failure = error
    keeper = import_module("rewardsvc.verifiers.sandbox.zygote").main
    join_mappings()
    keeper(socket_fd, settings, failure)
    os._exit(1)


def _preload(modules: list[str], python_path: list[str]) -> None:
    sys.path += python_path
    for name in [*PRELOADED, *modules]:
        import_module(name)
    atfork.stop_recording()
    for name in START_ENVIRONMENT.keys() - ENVIRONMENT.keys():
        os.environ.pop(name, None)


def join_mappings() -> None:
    """Makes one mapping of the parts of each library that are only read and those that are run.

    A fork copies each mapping, and the end of a process takes each apart: there are two fewer of
    every library then. Nothing becomes writable by it. Where the kernel refuses, they stay apart.
    """
    protect = ctypes.CDLL(None).mprotect
    rows = [row.split(None, 5) for row in Path("/proc/self/maps").read_text().splitlines()]
    start = end = next_offset = 0
    inode, runs = "", False
    for row in [*rows, ["0-0", "", "0", "", "", ""]]:
        first, last = (int(part, 16) for part in row[0].split("-"))
        offset = int(row[2], 16)
        joins = row[1] in ("r--p", "r-xp") and row[4] not in ("", "0")
        if not (joins and (first, offset, row[4]) == (end, next_offset, inode)):
            if runs:
                length = ctypes.c_size_t(end - start)
                protect(ctypes.c_void_p(start), length, _READ_EXECUTE)
            start, inode, runs = first, row[4] if joins else "", False
        end, next_offset = last, offset + last - first
        runs = runs or (joins and "x" in row[1])
