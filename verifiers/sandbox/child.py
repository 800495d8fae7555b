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
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rewardsvc.verifiers.sandbox import harness, landlock, linux, rootfs, seccomp, wire
from rewardsvc.verifiers.sandbox.cgroups import Cgroup
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.watch import watch

CONTROL_FD = 50
NOTE_FD = 51
_RULESET_FD = 52
STARTED = b'{"started":true}'
NEVER_STARTED = 125
"""Exit code of a child whose jail could not be built."""

_NUM_OPEN_FILES = {"python": 64, "exec": 1024}
_STACK_BYTES = 64 << 20
_MIB = 1 << 20
# How much later than the supervisor's the kernel's own CPU limit strikes: it counts whole seconds.
_CPU_GRACE_SECONDS = 1
_MAX_ERROR_CHARS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class JailPlan:
    """What a child of this slot puts on.

    Attributes:
        kind: "python" or "exec".
        layers: Which layers to raise; one that fails, fails the run.
        disk_bytes: Size of the working folder.
        num_files: Inodes of the working folder.
        work_dir: The folder to work in.
        readable: What Landlock lets it read and execute.
        ruleset: A Landlock ruleset that fits python runs, or -1.
        uid: Host user to become, if the slot is still root; -1 if it is not.
        base_bytes: Address space of the interpreter before any program runs.
        group: The slot's cgroups, if any.
    """

    kind: str
    layers: frozenset[Layer]
    disk_bytes: int
    num_files: int
    work_dir: str
    readable: tuple[str, ...]
    ruleset: int
    uid: int
    base_bytes: int
    group: Cgroup | None


def main(plan: JailPlan, control: socket.socket, note_fd: int) -> NoReturn:
    """Runs in the forked child, from its first instruction to its last."""
    report_fd = control.fileno()
    try:
        _join_cgroup_and_mounts(plan)
        ruleset = _keep_only(plan, control, note_fd)
        report_fd = CONTROL_FD
        # The socket object is made before the filter falls, for it asks the kernel what it is.
        channel = socket.socket(fileno=CONTROL_FD)
        _drop_everything(plan, channel, ruleset)
        order, fds = wire.receive(channel)
        channel.detach()
        _obey(plan, order, fds)
    except EOFError:
        os._exit(0)
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
        # Not send(): under the filter, write is what is left.
        os.write(report_fd, json.dumps({"error": message}).encode())
    finally:
        os._exit(NEVER_STARTED)


def _join_cgroup_and_mounts(plan: JailPlan) -> None:
    os.setsid()
    if plan.group is not None:
        plan.group.attach_self()
    if Layer.MOUNT_NS in plan.layers:
        linux.unshare(linux.CLONE_NEWNS)
        executable = plan.kind == "exec"
        rootfs.mount_work_dir(
            plan.disk_bytes, plan.num_files, executable=executable, owner=plan.uid
        )
        if Layer.PROC in plan.layers:
            if executable:
                rootfs.mount_proc()
            else:
                rootfs.hide_proc()
    else:
        os.chdir(plan.work_dir)
        os.environ.update(HOME=plan.work_dir, TMPDIR=plan.work_dir)
    os.umask(0o077)


def _keep_only(plan: JailPlan, control: socket.socket, note_fd: int) -> int:
    """Moves the descriptors that the child needs to their places, and closes all others.

    Returns:
        The Landlock ruleset that the supervisor has prepared for this kind of child, or -1.
    """
    highest = max(control.fileno(), note_fd, plan.ruleset)
    if highest >= CONTROL_FD:
        raise OSError(f"descriptor {highest} leaves no room for the fixed ones")
    keep = -1
    if plan.kind == "python" and plan.ruleset >= 0:
        keep = os.dup2(plan.ruleset, _RULESET_FD, inheritable=False)
    os.dup2(control.detach(), CONTROL_FD, inheritable=False)
    os.dup2(note_fd, NOTE_FD, inheritable=False)
    os.closerange(3, CONTROL_FD)
    os.closerange((NOTE_FD if keep < 0 else keep) + 1, 1 << 16)
    return keep


def _drop_everything(plan: JailPlan, channel: socket.socket, ruleset: int) -> None:
    """From here on the process can do no more than the program will be able to."""
    layers = plan.layers
    work_fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if plan.uid >= 0:
        os.setgroups([])
        os.setresgid(plan.uid, plan.uid, plan.uid)
        os.setresuid(plan.uid, plan.uid, plan.uid)
    if Layer.PID_NS not in layers:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if Layer.CAPABILITIES in layers:
        linux.drop_capabilities()
    if Layer.LANDLOCK in layers:
        if ruleset < 0:
            readable = [*plan.readable, "/proc"] if plan.kind == "exec" else plan.readable
            ruleset = landlock.prepare(readable, [plan.work_dir], rootfs.DEVICES)
        landlock.restrict(ruleset)
        os.close(ruleset)
    # Nobody with the same user id may look into this process.
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    wire.send(channel, {"ready": True}, [work_fd])
    os.close(work_fd)
    if plan.kind == "python" and Layer.SECCOMP in layers:
        linux.install_seccomp(seccomp.python_program(CONTROL_FD, signals=Layer.PID_NS in layers))


def _obey(plan: JailPlan, order: wire.Header, fds: list[int]) -> NoReturn:
    """Carries out one order.

    Args:
        plan: What this child wears.
        order: "mode", "limits", and what the mode takes.
        fds: Payload, stdin, stdout, stderr, and the mode's own.
    """
    payload, stdin, stdout, stderr, *extras = fds
    meta, blobs = wire.unpack(payload)
    sources, offset = {}, 0
    for name, size in meta["sources"]:
        sources[name] = bytes(blobs[offset : offset + size]).decode("utf-8", "surrogatepass")
        offset += size
    for path, size in meta["files"]:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(blobs[offset : offset + size])
        if plan.kind == "exec":
            target.chmod(0o700)
        offset += size
    for source, target_fd in zip((stdin, stdout, stderr), (0, 1, 2), strict=True):
        os.dup2(source, target_fd)
    for index, fd in enumerate(extras):
        os.dup2(fd, harness.FIRST_EXTRA_FD + index, inheritable=False)
    os.closerange(3, harness.FIRST_EXTRA_FD)
    if plan.kind == "exec":
        _run_as_init(plan, order)
    _set_limits(plan, order["limits"])
    os.write(CONTROL_FD, STARTED)
    os.close(CONTROL_FD)
    harness.run(order["mode"], sources, order["settings"], NOTE_FD)


def _set_limits(plan: JailPlan, limits: dict[str, int]) -> None:
    """Limits of one process; soft and hard alike, so that they cannot be raised again."""
    if Layer.RLIMITS not in plan.layers:
        return
    file_bytes = max(limits["disk_mib"] * _MIB, limits["output_bytes"]) + 1
    # The slot's supervisor, and the init of an exec run, count towards the user's processes.
    num_processes = limits["num_processes"] + (2 if plan.kind == "exec" else 1)
    values = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: -(-limits["cpu_ms"] // 1000) + _CPU_GRACE_SECONDS,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: _NUM_OPEN_FILES[plan.kind],
        resource.RLIMIT_NPROC: num_processes,
        resource.RLIMIT_SIGPENDING: 128,
        resource.RLIMIT_STACK: _STACK_BYTES,
    }
    memory_bytes = limits["memory_mib"] * _MIB
    if plan.kind == "python":
        values[resource.RLIMIT_AS] = plan.base_bytes + memory_bytes
    elif plan.group is None:
        # Not the address space: the runtimes of Go, Java and JavaScript reserve far more of it than
        # they use. Writable private memory is what this counts.
        values[resource.RLIMIT_DATA] = memory_bytes
    for kind, value in values.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _run_as_init(plan: JailPlan, order: wire.Header) -> NoReturn:
    """Starts the program, waits, reports, and ends, which ends whatever else still runs."""
    program = os.fork()
    if program == 0:
        _exec(plan, order)
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


def _exec(plan: JailPlan, order: wire.Header) -> NoReturn:
    """Becomes the compiler or program; says on the note pipe if that fails."""
    try:
        os.setsid()
        _set_limits(plan, order["limits"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        fcntl.fcntl(NOTE_FD, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        settings = order["settings"]
        if Layer.SECCOMP in plan.layers:
            linux.install_seccomp(seccomp.exec_program())
        env = {**settings["env"], "HOME": plan.work_dir, "TMPDIR": plan.work_dir}
        os.execve(settings["argv"][0], settings["argv"], env)  # noqa: S606
    except BaseException as error:
        os.write(NOTE_FD, f"exec: {error}".encode()[:_MAX_ERROR_CHARS])
    os._exit(NEVER_STARTED)
