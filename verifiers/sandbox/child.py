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

import json
import os
import signal
from pathlib import Path
from typing import NoReturn

from rewardsvc.verifiers.sandbox import harness, jail, linux, seccomp, wire
from rewardsvc.verifiers.sandbox.jail import CONTROL_FD, JailPlan, Outfit
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.watch import watch

STARTED = b'{"started":true}'
NEVER_STARTED = 125
"""Exit code of a child whose jail could not be built."""
FIRST_FD = 3
"""Descriptors of an order are numbered from here on: payload, stdin, stdout, stderr, and others."""

_PAYLOAD, _STDIN, _STDOUT, _STDERR = range(FIRST_FD, FIRST_FD + 4)
_MAX_ERROR_CHARS = 1000

# Looked up once, here: a child copies the page behind every lookup.
_dup2, _closerange, _write = os.dup2, os.closerange, os.write


def main(outfit: Outfit, folder: str, control_fd: int) -> NoReturn:
    """Runs in the forked child, from its first instruction to its last.

    Args:
        outfit: What to wear.
        folder: The working folder, which the process is in already if it has mounts of its own.
        control_fd: Orders come from there, and reports go there.
    """
    report_fd = control_fd
    try:
        jail.put_on(outfit, folder, control_fd)
        report_fd = CONTROL_FD
        await_order(outfit, folder)
    except EOFError:
        os._exit(0)
    except BaseException as error:
        report(error, report_fd)
    finally:
        os._exit(NEVER_STARTED)


def await_order(outfit: Outfit, folder: str) -> NoReturn:
    """Waits for an order, and carries it out.

    Raises:
        EOFError: If there will be none.
    """
    body, fds = wire.receive_body(outfit.channel)
    if fds[0] != FIRST_FD:
        raise OSError("a descriptor was open that should not be")
    obey(outfit.plan, folder, body, len(fds))


def report(error: BaseException, control_fd: int) -> None:
    """Says what went wrong before the program started."""
    message = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
    # Not send(): under the filter, write is what is left.
    os.write(control_fd, json.dumps({"error": message}).encode())


def obey(plan: JailPlan, folder: str, body: bytes, num_fds: int) -> NoReturn:
    """Carries out one order.

    Args:
        plan: What this child wears.
        folder: The working folder.
        body: The order, for limits that the supervisor has not set.
        num_fds: How many descriptors came with it.
    """
    order, sources = _unpack_and_place(_PAYLOAD, executable=plan.kind == "exec")
    _dup2(_STDIN, 0)
    _dup2(_STDOUT, 1)
    _dup2(_STDERR, 2)
    for index in range(num_fds - (_STDERR + 1 - FIRST_FD)):
        os.dup2(_STDERR + 1 + index, harness.FIRST_EXTRA_FD + index, inheritable=False)
    _closerange(FIRST_FD, harness.FIRST_EXTRA_FD)
    if plan.kind == "exec":
        _run_as_init(plan, folder, order["settings"], wire.decode(body)["limits"])
    if plan.uid >= 0:
        jail.set_limits(jail.limits_of_order(plan, wire.decode(body)["limits"], 0))
    _write(CONTROL_FD, STARTED)
    harness.run(order, sources, CONTROL_FD)


def unpack(payload: int) -> tuple[wire.Header, dict[str, str], list[tuple[str, memoryview]]]:
    """What an order brings along: its head, texts by name, and files by path."""
    head, blobs = wire.unpack(payload)
    sources, files, offset = {}, [], 0
    for name, size in head["sources"]:
        sources[name] = bytes(blobs[offset : offset + size]).decode("utf-8", "surrogatepass")
        offset += size
    for path, size in head["files"]:
        files.append((path, blobs[offset : offset + size]))
        offset += size
    return head, sources, files


def _unpack_and_place(payload: int, *, executable: bool) -> tuple[wire.Header, dict[str, str]]:
    """The head and the texts; no copy of the files stays in memory."""
    head, sources, files = unpack(payload)
    for path, content in files:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        if executable:
            target.chmod(0o700)
    return head, sources


def _run_as_init(
    plan: JailPlan, folder: str, settings: wire.Header, limits: dict[str, int]
) -> NoReturn:
    """Starts the program, waits, reports, and ends, which ends whatever else still runs."""
    program = os.fork()
    if program == 0:
        _exec(plan, folder, settings, limits)
    for fd in (0, 1, 2):
        os.close(fd)
    os.write(CONTROL_FD, STARTED)
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


def _exec(plan: JailPlan, folder: str, settings: wire.Header, limits: dict[str, int]) -> NoReturn:
    """Becomes the compiler or program, which inherits no control socket; says so if that fails."""
    try:
        os.setsid()
        jail.set_limits(jail.limits_of_order(plan, limits, 0))
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if Layer.SECCOMP in plan.layers:
            linux.install_seccomp(seccomp.exec_program())
        env = {**settings["env"], "HOME": folder, "TMPDIR": folder}
        os.execve(settings["argv"][0], settings["argv"], env)  # noqa: S606
    except BaseException as error:
        why = f"cannot run the program: {error}"[:_MAX_ERROR_CHARS]
        os.write(CONTROL_FD, json.dumps({"failure": why}).encode())
    os._exit(NEVER_STARTED)
