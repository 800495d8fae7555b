"""Runs in an exec'd process: tries each layer and prints a JSON table of what happened.

Each trial is a fork, so that one that half succeeds spoils nothing for the next. Namespaces other
than the user's need the privileges that the user's gives, so they are tried inside it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from rewardsvc.verifiers.sandbox import cgroups, landlock, linux, rootfs, seccomp
from rewardsvc.verifiers.sandbox.entry import Entry, enter_namespaces, prepare_entry
from rewardsvc.verifiers.sandbox.layers import Layer

_MAX_ERROR_BYTES = 2000


def main() -> NoReturn:
    """Prints `{layer: [available, detail]}`."""
    found: dict[str, tuple[bool, str]] = {}
    home = cgroups.find_home()
    found[Layer.CGROUPS] = (
        (home is not None),
        f"version {home.version} at {home.memory}"
        if home
        else "no cgroup with the memory and pids controllers in which this user may make groups",
    )
    layers: set[Layer] = set()
    for layer in (Layer.USER_NS, Layer.PID_NS, Layer.MOUNT_NS, Layer.NET_NS, Layer.IPC_NS):
        found[layer] = _try_namespaces({*layers, layer})
        if found[layer][0]:
            layers.add(layer)
    for layer in (Layer.UTS_NS, Layer.PROC):
        found[layer] = _try_namespaces({*layers, layer})
        if layer is Layer.PROC and Layer.MOUNT_NS not in layers:
            found[layer] = False, "needs a mount namespace"
        if found[layer][0]:
            layers.add(layer)
    for layer, trial in _TRIALS.items():
        found[layer] = attempt(trial)
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def attempt(trial: Callable[[], str]) -> tuple[bool, str]:
    """Does `trial` in a child; whether it worked, and what it or the kernel said."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            text = trial()
            status = 0
        except BaseException as error:
            text = str(error) or type(error).__name__
        os.write(write, text.encode()[:_MAX_ERROR_BYTES])
        os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False, f"the trial died of signal {signal.Signals(os.WTERMSIG(status)).name}"
    return os.waitstatus_to_exitcode(status) == 0, text


def _try_namespaces(layers: set[Layer]) -> tuple[bool, str]:
    """Enters these namespaces as a slot would, and forks a child in them."""

    def trial() -> str:
        entry = prepare_entry(frozenset(layers), rootfs.system_paths(), os.getpid())
        return _attempt_or_raise(lambda: _enter(entry))

    return attempt(trial)


def _attempt_or_raise(trial: Callable[[], str]) -> str:
    worked, text = attempt(trial)
    if not worked:
        raise OSError(text)
    return text


def _enter(entry: Entry) -> str:
    enter_namespaces(entry)
    if Layer.MOUNT_NS in entry.layers:
        linux.unshare(linux.CLONE_NEWNS)
        rootfs.mount_work_dir(1 << 20, 16, executable=False)
    if Layer.PID_NS not in entry.layers:
        return "works"
    linux.unshare(linux.CLONE_NEWPID)
    return _attempt_or_raise(_mount_proc if Layer.PROC in entry.layers else lambda: "works")


def _mount_proc() -> str:
    rootfs.mount_proc()
    return "works"


def _try_rlimits() -> str:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    return "works"


def _try_capabilities() -> str:
    linux.NO_CAPABILITIES.make()
    return "works"


def _try_no_new_privs() -> str:
    linux.set_no_new_privs()
    return "works"


def _try_landlock() -> str:
    linux.set_no_new_privs()
    landlock.restrict(landlock.prepare(["/usr"], [], []))
    try:
        os.listdir("/")  # noqa: PTH208 - a folder that the rules leave out
    except PermissionError:
        return f"ABI {linux.landlock_abi()}"
    raise OSError("Landlock took the rules and does not enforce them")


def _try_seccomp() -> str:
    linux.set_no_new_privs()
    linux.install_seccomp(seccomp.python_program(0))
    try:
        os.fork()
    except PermissionError:
        return f"{os.uname().machine}"
    raise OSError("seccomp took the filter and does not enforce it")


_TRIALS: dict[Layer, Callable[[], str]] = {
    Layer.RLIMITS: _try_rlimits,
    Layer.CAPABILITIES: _try_capabilities,
    Layer.NO_NEW_PRIVS: _try_no_new_privs,
    Layer.LANDLOCK: _try_landlock,
    Layer.SECCOMP: _try_seccomp,
}
