"""What a run's process wears: limits, privileges, file rules and filter, and how it puts them on.

Most of it is prepared once, in the process that forks, and inherited. What is left for each child
is a row of steps, most of them system calls. A child takes them one after another in `put_on`;
where they are system calls only, they can be part of a `chain` instead: see `add_steps`.
"""

from __future__ import annotations

import functools
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from rewardsvc.verifiers.sandbox import landlock, linux, rootfs, seccomp
from rewardsvc.verifiers.sandbox.chain import Chain
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.linux import Call

CONTROL_FD = 50
"""A child's end of its control socket."""
RULESET_FD = 51
CHANNEL_FD = 52
"""Of the process that forks: to the supervisor."""
MAX_FD = 1 << 16
"""Descriptors below this are closed where all are; no process of ours may have more."""
READY = b'{"ready":true}'
NUM_OWN_PROCESSES = 5
"""Of a slot: the supervisor, the one that forks, and children that wait for later orders."""

_NUM_OPEN_FILES = {"python": 64, "exec": 1024}
_NUM_PENDING_SIGNALS = 128
_STACK_BYTES = 64 << 20
_MIB = 1 << 20
# How much later than the supervisor's the kernel's own CPU limit strikes: it counts whole seconds.
_CPU_GRACE_SECONDS = 1


Step: TypeAlias = Call | Callable[[str], object]
"""A system call, or a function of the working folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JailPlan:
    """What the children of one forking process put on.

    Attributes:
        kind: "python" or "exec".
        layers: Which layers to raise; one that fails, fails the run.
        readable: What Landlock lets it read and execute.
        ruleset: A Landlock ruleset that fits, or -1 if each child must make one.
        uid: Host user to become, if the slot is still root; -1 if it is not.
        base_bytes: Address space of the interpreter before any program runs.
        grouped: Whether a cgroup limits the memory of all processes together.
        limited: Whether limits are set for single processes.
    """

    kind: str
    layers: frozenset[Layer]
    readable: tuple[str, ...]
    ruleset: int
    uid: int
    base_bytes: int
    grouped: bool
    limited: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outfit:
    """A plan made ready to be put on, in the process that will fork the children.

    Attributes:
        plan: The plan.
        channel: The socket of the children: for now without an other end, which each gives it for
            itself.
        steps: What each does to itself, in this order.
        install_filter: The step after these, if python children have a filter.
        confine: Puts the forking process itself under the part of the filter that its children
            inherit, once it has done all else, if they do.
    """

    plan: JailPlan
    channel: socket.socket
    steps: tuple[Step, ...]
    install_filter: Call | None
    confine: Callable[[], None] | None


def prepare(plan: JailPlan, *, inherit_filter: bool) -> Outfit:
    """Puts on, once, what children inherit from the process that forks them.

    Args:
        plan: What they wear.
        inherit_filter: Whether that process does nothing but make python children, and sends no
            signal, so that most of their filter may be its own.
    """
    os.umask(0o077)
    _set_fixed_limits(plan)
    install_filter = confine = None
    if Layer.SECCOMP in plan.layers and plan.kind == "python":
        program = seccomp.python_program(CONTROL_FD, signals=Layer.PID_NS in plan.layers)
        if inherit_filter:
            confine = functools.partial(linux.install_seccomp, seccomp.forker_program(CONTROL_FD))
            program = seccomp.remainder_program(CONTROL_FD)
        install_filter = linux.seccomp_call(program)
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, other:
        os.dup2(channel.fileno(), CONTROL_FD, inheritable=False)
    if plan.ruleset >= 0:
        os.dup2(plan.ruleset, RULESET_FD, inheritable=False)
    return Outfit(
        plan=plan,
        channel=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, CONTROL_FD),
        steps=tuple(_steps(plan)),
        install_filter=install_filter,
        confine=confine,
    )


def put_on(outfit: Outfit, folder: str, control_fd: int) -> None:
    """Takes the calling process, which was just forked, into its jail.

    It says so on its control socket. The filter falls last.

    Args:
        outfit: What to wear.
        folder: The working folder, which the process is in already if it has mounts of its own.
        control_fd: The control socket; below `CONTROL_FD`, which it becomes.
    """
    # A signal to the own process group must not reach the process that forks.
    os.setsid()
    if control_fd >= CONTROL_FD:
        raise OSError("open descriptors leave no room for the fixed ones")
    os.dup2(control_fd, CONTROL_FD, inheritable=False)
    os.closerange(3, CONTROL_FD)
    os.closerange(CHANNEL_FD, MAX_FD)
    for step in outfit.steps:
        if isinstance(step, Call):
            step.make()
        else:
            step(folder)
    os.closerange(RULESET_FD, CHANNEL_FD)
    os.write(CONTROL_FD, READY)
    if outfit.install_filter is not None:
        outfit.install_filter.make()


def add_steps(chain: Chain, outfit: Outfit, control_fd: int) -> None:
    """Adds rows that do what `put_on` does; all steps must be system calls."""
    chain.add("setsid")
    chain.add("dup3", control_fd, CONTROL_FD, os.O_CLOEXEC)
    chain.add("close_range", 3, CONTROL_FD - 1)
    chain.add("close_range", CHANNEL_FD, MAX_FD)
    for step in outfit.steps:
        assert isinstance(step, Call)
        step.add_to(chain)
    chain.add("close", RULESET_FD)
    chain.add("write", CONTROL_FD, chain.place(READY), len(READY))
    if outfit.install_filter is not None:
        outfit.install_filter.add_to(chain)


def _steps(plan: JailPlan) -> Iterator[Step]:
    """After the last of these the process can do no more than the program will be able to."""
    layers = plan.layers
    if Layer.MOUNT_NS not in layers:
        yield _enter_folder
    elif plan.kind == "exec" and Layer.PROC in layers:
        yield lambda _: rootfs.mount_proc()
    if plan.uid >= 0:
        yield lambda _: _become(plan.uid)
    if Layer.PID_NS not in layers:
        yield linux.prctl_call(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if Layer.CAPABILITIES in layers:
        yield linux.NO_CAPABILITIES
    if Layer.LANDLOCK in layers and plan.ruleset >= 0:
        yield linux.landlock_call(RULESET_FD)
    elif Layer.LANDLOCK in layers:
        yield lambda folder: _restrict_to(plan, folder)
    # Nobody with the same user id may look into this process.
    yield linux.prctl_call(linux.PR_SET_DUMPABLE, 0)


def _enter_folder(folder: str) -> None:
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _restrict_to(plan: JailPlan, folder: str) -> None:
    readable = [*plan.readable, "/proc"] if plan.kind == "exec" else plan.readable
    ruleset = landlock.prepare(readable, [folder], rootfs.DEVICES)
    landlock.restrict(ruleset)
    os.close(ruleset)


def _set_fixed_limits(plan: JailPlan) -> None:
    """Limits of one process that every run has alike."""
    if plan.limited:
        set_limits(
            {
                resource.RLIMIT_CORE: 0,
                resource.RLIMIT_MEMLOCK: 0,
                resource.RLIMIT_MSGQUEUE: 0,
                resource.RLIMIT_NOFILE: _NUM_OPEN_FILES[plan.kind],
                resource.RLIMIT_SIGPENDING: _NUM_PENDING_SIGNALS,
                resource.RLIMIT_STACK: _STACK_BYTES,
            }
        )


def limits_of_order(plan: JailPlan, limits: dict[str, int], payload_bytes: int) -> dict[int, int]:
    """Limits of one process that depend on the order: values by what they limit.

    Args:
        plan: What the process wears.
        limits: Of the order.
        payload_bytes: What the order brings along; a python child holds it in memory.
    """
    if not plan.limited:
        return {}
    # The slot's own processes and the init of an exec run count towards the user's processes.
    num_processes = limits["num_processes"] + NUM_OWN_PROCESSES + (plan.kind == "exec")
    values = {
        resource.RLIMIT_CPU: -(-limits["cpu_ms"] // 1000) + _CPU_GRACE_SECONDS,
        resource.RLIMIT_FSIZE: max(limits["disk_mib"] * _MIB, limits["output_bytes"]) + 1,
        resource.RLIMIT_NPROC: num_processes,
    }
    memory_bytes = limits["memory_mib"] * _MIB
    if plan.kind == "python":
        values[resource.RLIMIT_AS] = plan.base_bytes + memory_bytes + 2 * payload_bytes
    elif not plan.grouped:
        # Not the address space: the runtimes of Go, Java and JavaScript reserve far more of it than
        # they use. Writable private memory is what this counts.
        values[resource.RLIMIT_DATA] = memory_bytes
    return values


def set_limits(values: dict[int, int], pid: int = 0) -> None:
    """Sets limits of a process of this slot, soft and hard alike, so that it cannot raise them.

    Args:
        values: By what they limit.
        pid: Which process; 0 for the calling one.
    """
    for kind, value in values.items():
        hard = _hard_limit(kind)
        value = value if hard == -1 else min(value, hard)
        resource.prlimit(pid, kind, (value, value))


@functools.cache
def _hard_limit(kind: int) -> int:
    """What a process of the slot has inherited and cannot exceed."""
    return resource.getrlimit(kind)[1]
