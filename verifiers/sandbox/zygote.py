"""One slot of the pool: the processes between the grader and the programs.

    grader (holds expected values; any size, any threads)
      │  exec, one socket
      ▼
    keeper        host's namespaces; makes and removes the cgroups; otherwise only waits
      │  fork
      ▼
    porter        gives up root, if it was; makes the user namespace and the pid namespace; waits
      │  fork
      ▼
    supervisor    the slot's user, pid, mount, net, ipc and uts namespaces; first of its pid
    namespace
      │  fork, once for each kind of run
      ▼
    forker        see `forker`: does nothing but fork and reap
      │  fork, ahead of need, each into a pid and mount namespace of its own
      ▼
    child         see `child`: rlimits, no capabilities, Landlock, seccomp, then the program

The forker stays small, because a fork costs what its memory costs. The supervisor handles one order
at a time, passes descriptors on without looking into them, and enforces the limits from outside. If
the grader dies, the socket closes and the supervisor ends; if the supervisor dies, or a forker, the
kernel kills everything in its pid namespace; if the keeper dies, the supervisor is killed with it,
and the grader (or the next one to start) removes the cgroups.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import NoReturn

from rewardsvc.verifiers.sandbox import cgroups, linux, wire
from rewardsvc.verifiers.sandbox.entry import prepare_entry
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.stragglers import kill_descendants, remove_tree
from rewardsvc.verifiers.sandbox.supervisor import Supervisor


def main(socket_fd: str, settings: wire.Header, failure: BaseException | None) -> NoReturn:
    """The keeper: becomes a slot of the pool, on a socket to the grader.

    Args:
        socket_fd: Number of that socket.
        settings: From `slot.SlotSettings`.
        failure: Why the interpreter's image could not be made, if it could not.
    """
    layers = frozenset(Layer(name) for name in settings["layers"])
    control = socket.socket(fileno=int(socket_fd))
    if failure is not None:
        _report_and_exit(control, failure)
    group = None
    if Layer.CGROUPS in layers:
        home = cgroups.CgroupHome(
            version=settings["cgroups"]["version"],
            memory=Path(settings["cgroups"]["memory"]),
            pids=Path(settings["cgroups"]["pids"]),
        )
        group = cgroups.create(home, os.getpid())
    if Layer.PID_NS not in layers:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    porter = os.fork()
    if porter == 0:
        try:
            _carry_in(control, settings, layers, group)
        except BaseException as error:
            _report_and_exit(control, error)
    control.close()
    os.waitpid(porter, 0)
    if Layer.PID_NS not in layers:
        kill_descendants(os.getpid())
    if settings["scratch"]:
        remove_tree(settings["scratch"])
    if group is not None:
        group.remove()
    os._exit(0)


def _carry_in(
    control: socket.socket,
    settings: wire.Header,
    layers: frozenset[Layer],
    group: cgroups.Cgroup | None,
) -> NoReturn:
    """The porter: everything that must happen before the supervisor's pid namespace begins."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    base_bytes = pages * os.sysconf("SC_PAGE_SIZE")
    entry = prepare_entry(layers, settings["paths"], int(settings["salt"]))
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    supervisor = os.fork()
    if supervisor == 0:
        try:
            Supervisor(control, settings, entry, base_bytes, group).run()
        except EOFError:
            os._exit(0)  # and with the supervisor, everything in its pid namespace
        except BaseException as error:
            _report_and_exit(control, error)
    control.close()
    os.waitpid(supervisor, 0)
    os._exit(0)


def _report_and_exit(control: socket.socket, error: BaseException) -> NoReturn:
    with contextlib.suppress(OSError):
        wire.send(control, {"error": f"{type(error).__name__}: {error}"})
    os._exit(1)
