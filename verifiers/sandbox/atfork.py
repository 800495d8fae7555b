"""Keeps the standard library's fork handlers out of the interpreter's hands, so that forks stay
cheap.

`threading` resets every lock it knows after a fork, `random` draws a new seed. In a slot each child
would pay for that with a hundred copied pages, although nothing but the one thread has ever run in
the process that it was forked from. So handlers are recorded instead of registered while modules
are imported, and children run the ones that matter.

Must be imported before the modules whose handlers it is to record; `boot` does that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeAlias

_Handlers: TypeAlias = dict[str, Callable[[], object]]

_SEED_BYTES = 32

_register = os.register_at_fork
_recorded: list[_Handlers] = []
_in_child: list[Callable[[], object]] = []


def _record(**handlers: Callable[[], object]) -> None:
    _recorded.append(handlers)


os.register_at_fork = _record  # type: ignore[assignment]


def stop_recording() -> None:
    """Gives `os.register_at_fork` back, once everything is imported.

    Raises:
        RuntimeError: If a module has started threads: they would be lost in the children, and the
            kernel lets no process with threads into a user namespace.
    """
    os.register_at_fork = _register
    if len(sys._current_frames()) > 1:
        raise RuntimeError("a preloaded module has started threads; leave it out of `preload`")
    # With one thread there is nothing for `threading` to reset.
    _in_child[:] = [
        _shortened(handlers["after_in_child"])
        for handlers in _recorded
        if "after_in_child" in handlers and handlers["after_in_child"].__module__ != "threading"
    ]


def _shortened(handler: Callable[[], object]) -> Callable[[], object]:
    """A new seed for `random` without the layer in Python, or `handler` itself."""
    random = sys.modules.get("random")
    if random is None or handler != random._inst.seed:
        return handler
    seed: Callable[[int], object] = super(random.Random, random._inst).seed
    urandom, as_number = os.urandom, int.from_bytes
    # With nothing given it would take two and a half thousand bytes of the kernel.
    return lambda: seed(as_number(urandom(_SEED_BYTES), "little"))


def run_in_child() -> None:
    """What a forked child has to do: runs the recorded handlers of modules other than threading."""
    for handler in _in_child:
        handler()
