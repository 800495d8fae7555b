"""The layers of the jail, what is lost without each, and which of them a level of isolation
needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from rewardsvc.verifiers.sandbox.types import Isolation, IsolationError

_PROBE_TIMEOUT_SECONDS = 60.0


class Layer(StrEnum):
    """One protection. The order is that of raising them."""

    CGROUPS = "cgroups"
    USER_NS = "user namespace"
    PID_NS = "pid namespace"
    MOUNT_NS = "mount namespace"
    NET_NS = "network namespace"
    IPC_NS = "ipc namespace"
    UTS_NS = "uts namespace"
    PROC = "own /proc"
    RLIMITS = "rlimits"
    CAPABILITIES = "no capabilities"
    NO_NEW_PRIVS = "no_new_privs"
    LANDLOCK = "Landlock"
    SECCOMP = "seccomp"


WHAT_IS_LOST: dict[Layer, str] = {
    Layer.CGROUPS: "memory is limited by process and file system, not in sum; a compiled program "
    "that runs out of memory is a runtime error rather than a memory limit",
    Layer.USER_NS: "programs run as an ordinary user of the host instead of one of their own",
    Layer.PID_NS: "programs see other processes; compiled ones can signal those of the same user "
    "unless Landlock forbids it; daemons are hunted down instead of dying",
    Layer.MOUNT_NS: "programs see the host's files as far as Landlock and permissions allow, and "
    "the size of their working folder is not limited",
    Layer.NET_NS: "only the system call filter and Landlock keep programs off the network",
    Layer.IPC_NS: "only the filter keeps programs off the host's shared memory and queues",
    Layer.UTS_NS: "programs see the host's name",
    Layer.PROC: "compilers and runtimes that look for themselves in /proc may not work",
    Layer.RLIMITS: "nothing limits memory, files and CPU time of a single process",
    Layer.CAPABILITIES: "programs keep the privileges of the jail",
    Layer.NO_NEW_PRIVS: "programs could gain privileges by set-user-id files",
    Layer.LANDLOCK: "files are kept apart by mounts alone",
    Layer.SECCOMP: "programs can reach all of the kernel's system calls",
}

_NAMESPACES = frozenset(
    {Layer.PID_NS, Layer.MOUNT_NS, Layer.NET_NS, Layer.IPC_NS, Layer.UTS_NS, Layer.PROC}
)

_OPTIONAL = {
    Isolation.STRICT: frozenset[Layer](),
    Isolation.FULL: frozenset({Layer.CGROUPS, Layer.PROC}),
    Isolation.BEST_EFFORT: frozenset(Layer),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """Whether this machine grants a layer.

    Attributes:
        layer: Which.
        available: Whether it works here.
        detail: How it was found to work, or what the kernel said.
        lost: What is lost without it.
    """

    layer: Layer
    available: bool
    detail: str
    lost: str


def choose(
    isolation: Isolation, reports: Iterable[LayerReport], without: Iterable[Layer] = ()
) -> frozenset[Layer]:
    """The layers to raise.

    Args:
        isolation: How much the operator asked for.
        reports: From `probe`.
        without: Layers to do without all the same.

    Raises:
        IsolationError: If a layer that `isolation` needs is not there.
    """
    reports = tuple(reports)
    out = frozenset(without)
    granted = frozenset(r.layer for r in reports if r.available) - out
    if Layer.USER_NS not in granted and os.geteuid() != 0:
        granted -= _NAMESPACES  # only the user namespace gives an ordinary user the right to them
    if not {Layer.MOUNT_NS, Layer.PID_NS} <= granted:
        granted -= {Layer.PROC}
    missing = [r for r in reports if r.layer not in granted and r.layer not in _OPTIONAL[isolation]]
    if missing:
        rows = "; ".join(
            f"{r.layer} ({'left out' if r.layer in out else r.detail}): {r.lost}" for r in missing
        )
        raise IsolationError(
            f"isolation={isolation.value!r} cannot be had here. Missing: {rows}. Grant these, or, "
            "if something else isolates this machine, ask for isolation='best-effort'"
        )
    return granted
