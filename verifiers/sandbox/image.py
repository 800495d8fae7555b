"""What a slot's interpreter holds in memory before the first process is forked.

What it holds is what each fork has to copy the tables of, and each exit to take apart.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import NoReturn

from rewardsvc.verifiers.sandbox import atfork, mappings
from rewardsvc.verifiers.sandbox.boot import ENVIRONMENT, START_ENVIRONMENT

PRELOADED = (  # noqa: SIM905
    "bisect collections copy dataclasses datetime decimal enum fractions functools heapq itertools "
    "json math operator random re string threading traceback typing"
).split()
"""Modules of the standard library that a program finds already imported. Each costs every run a few
page tables and page faults, so these are the ones that programs do import."""


def main(socket_fd: str, settings_json: str) -> NoReturn:
    """Imports what programs find imported, then becomes the keeper of a slot: see `zygote`."""
    settings = json.loads(settings_json)
    failure: BaseException | None = None
    try:
        _preload(settings["preload"], settings["python_path"])
    except BaseException as error:
        failure = error
    keeper = import_module("rewardsvc.verifiers.sandbox.zygote").main
    mappings.join_mappings()
    mappings.enlarge_code_pages()
    keeper(socket_fd, settings, failure)
    os._exit(1)


def _preload(modules: list[str], python_path: list[str]) -> None:
    sys.path += python_path
    for name in [*PRELOADED, *modules]:
        import_module(name)
    atfork.stop_recording()
    for name in START_ENVIRONMENT.keys() - ENVIRONMENT.keys():
        os.environ.pop(name, None)
