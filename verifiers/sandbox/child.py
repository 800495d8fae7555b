"""One run's process: puts on its jail, waits for an order, carries it out.

A child is forked before anyone needs it. When the order arrives only the limits that depend on it
are left to set. Two kinds share the steps:

* *python*: the child itself becomes the program. It is the first process of its pid namespace, the
  filter denies new processes, and its death is the run's end.
* *exec*: the child stays behind as the init of its pid namespace and starts a compiler or a program
  in a second process, which cannot harm it: it waits, reaps orphans, reports, and its own end takes
  everything with it that the program has left running.

Whatever goes wrong before the program starts is reported as the sandbox's failure. The message
`STARTED` on the control channel marks the point after which everything is the program's doing.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from rewardsvc.verifiers.sandbox import harness, landlock, linux, rootfs, seccomp, wire
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.watch import watch

CONTROL_FD = 50
NOTE_FD = 51
_RULESET_FD = 52
MAX_FD = 1 << 16
"""Descriptors below this are closed where all are; no process of ours may have more."""
READY = b'{"ready":true}'
STARTED = b'{"started":true}'
NEVER_STARTED = 125
"""Exit code of a child whose jail could not be built."""

_NUM_OPEN_FILES = {"python": 64, "exec": 1024}
_NUM_PENDING_SIGNALS = 128
_STACK_BYTES = 64 << 20
NUM_OWN_PROCESSES = 5
"""Of a slot: the supervisor, the one that forks, and children that wait for later orders."""
_MIB = 1 << 20
# How much later than the supervisor's the kernel's own CPU limit strikes: it counts whole seconds.
_CPU_GRACE_SECONDS = 1
_MAX_ERROR_CHARS = 1000

# Looked up once, here: a child copies the page behind every lookup.
_setsid, _dup2, _closerange, _write, _close = (
    os.setsid,
    os.dup2,
    os.closerange,
    os.write,
    os.close,
)
_getrlimit, _setrlimit = resource.getrlimit, resource.setrlimit
_CPU, _FSIZE, _NPROC = resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC
_AS, _DATA = resource.RLIMIT_AS, resource.RLIMIT_DATA


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
        keep_ruleset: Whether they inherit a Landlock ruleset.
        steps: What each does to itself, in this order; takes the working folder.
        install_filter: The last step, if python children have a filter.
        confine: Puts the forking process itself under the part of the filter that its children
            inherit, once it has done all else, if they do.
    """

    plan: JailPlan
    channel: socket.socket
    keep_ruleset: bool
    steps: tuple[Callable[[str], object], ...]
    install_filter: Callable[[], None] | None
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
    if Layer.SECCOMP in plan.layers:
        program = _filter(plan)
        if plan.kind == "python":
            if inherit_filter:
                confine = partial(linux.install_seccomp, seccomp.forker_program(CONTROL_FD))
                program = seccomp.remainder_program(CONTROL_FD)
            install_filter = partial(linux.install_seccomp, program)
        linux.prepare_seccomp(program)
    harness.rehearse()
    _rehearse()
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, other:
        os.dup2(channel.fileno(), CONTROL_FD, inheritable=False)
    if plan.ruleset >= 0:
        os.dup2(plan.ruleset, _RULESET_FD, inheritable=False)
    return Outfit(
        plan=plan,
        channel=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, CONTROL_FD),
        keep_ruleset=plan.ruleset >= 0,
        steps=tuple(_steps(plan)),
        install_filter=install_filter,
        confine=confine,
    )


def _steps(plan: JailPlan) -> Iterator[Callable[[str], object]]:
    """After the last of these the process can do no more than the program will be able to."""
    layers = plan.layers
    if Layer.MOUNT_NS not in layers:
        yield _enter_folder
    elif plan.kind == "exec" and Layer.PROC in layers:
        yield lambda _: rootfs.mount_proc()
    if plan.uid >= 0:
        yield lambda _: _become(plan.uid)
    if Layer.PID_NS not in layers:
        yield lambda _: linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if Layer.CAPABILITIES in layers:
        yield lambda _: linux.drop_capabilities()
    if Layer.LANDLOCK in layers and plan.ruleset >= 0:
        yield lambda _: landlock.restrict(_RULESET_FD)
    elif Layer.LANDLOCK in layers:
        yield lambda folder: _restrict_to(plan, folder)
    # Nobody with the same user id may look into this process.
    yield lambda _: linux.prctl(linux.PR_SET_DUMPABLE, 0)


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


def _filter(plan: JailPlan) -> bytes:
    if plan.kind == "exec":
        return seccomp.exec_program()
    return seccomp.python_program(CONTROL_FD, signals=Layer.PID_NS in plan.layers)


def main(outfit: Outfit, folder: str, control_fd: int, note_fd: int) -> NoReturn:
    """Runs in the forked child, from its first instruction to its last.

    Args:
        outfit: What to wear.
        folder: The working folder, which the process is in already if it has mounts of its own.
        control_fd: Orders come from there, and reports go there.
        note_fd: For the harness.
    """
    report_fd = control_fd
    try:
        # A signal to the own process group must not reach the process that forks.
        _setsid()
        if control_fd >= CONTROL_FD or note_fd >= CONTROL_FD:
            raise OSError("open descriptors leave no room for the fixed ones")
        _dup2(control_fd, CONTROL_FD, False)
        _dup2(note_fd, NOTE_FD, False)
        report_fd = CONTROL_FD
        _closerange(3, CONTROL_FD)
        _closerange((_RULESET_FD if outfit.keep_ruleset else NOTE_FD) + 1, MAX_FD)
        for step in outfit.steps:
            step(folder)
        if outfit.keep_ruleset:
            _closerange(_RULESET_FD, _RULESET_FD + 1)
        _write(CONTROL_FD, READY)
        if outfit.install_filter is not None:
            outfit.install_filter()
        order, fds = wire.receive(outfit.channel)
        _obey(outfit.plan, folder, order, fds)
    except EOFError:
        os._exit(0)
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
        # Not send(): under the filter, write is what is left.
        os.write(report_fd, json.dumps({"error": message}).encode())
    finally:
        os._exit(NEVER_STARTED)


def _rehearse() -> None:
    """Receives and takes apart an order; see `harness.rehearse`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(harness.NUM_REHEARSALS):
            payload = wire.pack({"sources": [["code", 1]], "files": []}, [b" "])
            wire.send_body(ours, b'{"limits":{"cpu_ms":1}}', [payload] * 4)
            _, fds = wire.receive(theirs)
            _unpack(fds[0])
            for fd in (payload, *fds):
                os.close(fd)


def _unpack(payload: int) -> tuple[dict[str, str], list[tuple[str, memoryview]]]:
    """What an order brings along: texts by name, and files by path."""
    meta, blobs = wire.unpack(payload)
    sources, files, offset = {}, [], 0
    for name, size in meta["sources"]:
        sources[name] = bytes(blobs[offset : offset + size]).decode("utf-8", "surrogatepass")
        offset += size
    for path, size in meta["files"]:
        files.append((path, blobs[offset : offset + size]))
        offset += size
    return sources, files


def _obey(plan: JailPlan, folder: str, order: wire.Header, fds: list[int]) -> NoReturn:
    """Carries out one order.

    Args:
        plan: What this child wears.
        folder: The working folder.
        order: "mode", "limits", and what the mode takes.
        fds: Payload, stdin, stdout, stderr, and the mode's own.
    """
    payload, stdin, stdout, stderr, *extras = fds
    sources, files = _unpack(payload)
    for path, content in files:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        if plan.kind == "exec":
            target.chmod(0o700)
    _dup2(stdin, 0)
    _dup2(stdout, 1)
    _dup2(stderr, 2)
    for index, fd in enumerate(extras):
        os.dup2(fd, harness.FIRST_EXTRA_FD + index, inheritable=False)
    _closerange(3, harness.FIRST_EXTRA_FD)
    if plan.kind == "exec":
        _run_as_init(plan, folder, order)
    _set_limits_of_order(plan, order["limits"])
    _write(CONTROL_FD, STARTED)
    _close(CONTROL_FD)
    harness.run(order, sources, NOTE_FD)


def _set_fixed_limits(plan: JailPlan) -> None:
    """Limits of one process that every run has alike."""
    _set_limits(
        plan,
        {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
            resource.RLIMIT_NOFILE: _NUM_OPEN_FILES[plan.kind],
            resource.RLIMIT_SIGPENDING: _NUM_PENDING_SIGNALS,
            resource.RLIMIT_STACK: _STACK_BYTES,
        },
    )


def _set_limits_of_order(plan: JailPlan, limits: dict[str, int]) -> None:
    """Limits of one process that depend on the order."""
    # The slot's own processes and the init of an exec run count towards the user's processes.
    num_processes = limits["num_processes"] + NUM_OWN_PROCESSES + (plan.kind == "exec")
    values = {
        _CPU: -(-limits["cpu_ms"] // 1000) + _CPU_GRACE_SECONDS,
        _FSIZE: max(limits["disk_mib"] * _MIB, limits["output_bytes"]) + 1,
        _NPROC: num_processes,
    }
    memory_bytes = limits["memory_mib"] * _MIB
    if plan.kind == "python":
        values[_AS] = plan.base_bytes + memory_bytes
    elif not plan.grouped:
        # Not the address space: the runtimes of Go, Java and JavaScript reserve far more of it than
        # they use. Writable private memory is what this counts.
        values[_DATA] = memory_bytes
    _set_limits(plan, values)


def _set_limits(plan: JailPlan, values: dict[int, int]) -> None:
    """Soft and hard alike, so that they cannot be raised again."""
    if not plan.limited:
        return
    for kind, value in values.items():
        _, hard = _getrlimit(kind)
        value = value if hard == -1 else min(value, hard)
        _setrlimit(kind, (value, value))


def _run_as_init(plan: JailPlan, folder: str, order: wire.Header) -> NoReturn:
    """Starts the program, waits, reports, and ends, which ends whatever else still runs."""
    program = os.fork()
    if program == 0:
        _exec(plan, folder, order)
    for fd in (0, 1, 2):
        os.close(fd)
    os.write(CONTROL_FD, STARTED)
    limits = order["limits"]
    watched = watch(
        program,
        cpu_ms=limits["cpu_ms"],
        wall_ms=limits["wall_ms"],
        orphans=True,
        family=Layer.PROC in plan.layers,
    )
    report = {
        "ending": watched.ending,
        "wait_status": watched.wait_status,
        "cpu_ms": watched.cpu_ms,
        "peak_kib": watched.peak_kib,
    }
    os.write(CONTROL_FD, json.dumps(report).encode())
    os._exit(0)


def _exec(plan: JailPlan, folder: str, order: wire.Header) -> NoReturn:
    """Becomes the compiler or program; says on the note pipe if that fails."""
    try:
        os.setsid()
        _set_limits_of_order(plan, order["limits"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        fcntl.fcntl(NOTE_FD, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        settings = order["settings"]
        if Layer.SECCOMP in plan.layers:
            linux.install_seccomp(_filter(plan))
        env = {**settings["env"], "HOME": folder, "TMPDIR": folder}
        os.execve(settings["argv"][0], settings["argv"], env)  # noqa: S606
    except BaseException as error:
        os.write(NOTE_FD, f"exec: {error}".encode()[:_MAX_ERROR_CHARS])
    os._exit(NEVER_STARTED)
