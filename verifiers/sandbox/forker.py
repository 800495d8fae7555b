"""The process that children are forked from, and the supervisor's end of it.

A fork shares the memory of both sides until one of them writes. Whatever the forking process does
between two forks therefore costs twice: each page that it touches must be copied, because the last
child still has it. So the one that forks does nothing else. It holds an interpreter with
everything imported, waits on a socket, forks, reaps, and never sees an order, a result or a
descriptor of a run; all else is the supervisor's work, which never forks for a run.

Messages are packed by hand rather than as JSON for the same reason: few instructions, few pages.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import NoReturn

from rewardsvc.verifiers.sandbox import atfork, child, linux, watch, wire
from rewardsvc.verifiers.sandbox.child import JailPlan
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.stragglers import kill_descendants

_FORK, _REAP = b"F", b"R"
_PID = struct.Struct("=i")
_USAGE = struct.Struct("=iddq")
_NUM_PLAIN_FDS = 2
_TIMEOUT_SECONDS = 30.0


class ForkerGoneError(Exception):
    """The process that forks has been killed, or hangs."""


class Forker:
    """The supervisor's end. Answers come in the order of the requests."""

    def __init__(self, plan: JailPlan) -> None:
        """Forks the forking process, which closes what it has no use for.

        Args:
            plan: What its children wear.
        """
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Children of its own need less talk, but only a pid namespace of theirs ends their orphans.
        self._tid_address = linux.thread_id_address() if Layer.PID_NS in plan.layers else 0
        self._pid = os.fork()
        if self._pid == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _keep_only(theirs.fileno(), plan.ruleset)
                _serve(theirs, plan, self._tid_address)
            finally:
                os._exit(1)
        theirs.close()
        self._channel.settimeout(_TIMEOUT_SECONDS)
        self._num_asked = 0
        self._forked: deque[int] = deque()

    def fileno(self) -> int:
        """Readable when `forked_pid` has something to tell."""
        return self._channel.fileno()

    @property
    def alive(self) -> bool:
        """Whether the forking process still runs."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._pid, flags) is None

    def ask(self, folder: str, control_fd: int, note_fd: int, room_fd: int) -> None:
        """Asks for a child; `forked_pid` has its process id.

        Args:
            folder: Where it works.
            control_fd, note_fd: See `child.main`; the caller's to close.
            room_fd: The mount namespace that it is born into, or -1; the caller's to close.
        """
        fds = (control_fd, note_fd) if room_fd < 0 else (control_fd, note_fd, room_fd)
        with _translated():
            wire.send_body(self._channel, _FORK + folder.encode(), fds)
        self._num_asked += 1

    def forked_pid(self) -> int:
        """Of the child that was asked for first and not told about yet.

        If the kernel refused, the negative of its error number.
        """
        while not self._forked:
            self._hear()
        return self._forked.popleft()

    def _hear(self) -> None:
        (pid,) = _PID.unpack(self._answer(_PID.size))
        self._num_asked -= 1
        self._forked.append(pid)

    def _answer(self, size: int) -> bytes:
        with _translated():
            answer = self._channel.recv(size)
        if not answer:
            raise ForkerGoneError("the process that forks was killed")
        return answer

    def reap(self, pid: int) -> watch.Usage:
        """Waits for a child that is dead or about to be."""
        if self._tid_address:
            return watch.reap(pid)
        with _translated():
            self._channel.send(_REAP + _PID.pack(pid))
        while self._num_asked:
            self._hear()
        status, user_s, system_s, peak_kib = _USAGE.unpack(self._answer(_USAGE.size))
        return status, user_s, system_s, peak_kib


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ForkerGoneError(f"the process that forks does not answer: {error}") from error


def _keep_only(channel_fd: int, ruleset: int) -> None:
    """Closes all descriptors but those that this process and its children need."""
    previous = 2
    for fd in sorted({channel_fd, ruleset} - {-1}):
        os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, child.MAX_FD)


def _serve(channel: socket.socket, plan: JailPlan, tid_address: int) -> NoReturn:
    """The forking process, from its first instruction to its last.

    Args:
        channel: To the supervisor.
        plan: What the children wear.
        tid_address: If not 0, children are made as the supervisor's, which reaps them itself.
    """
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    own_pid = os.getpid()
    nested = Layer.PID_NS in plan.layers
    unshared = nested and not tid_address
    pidfd = os.pidfd_open(own_pid) if unshared else -1
    if not nested:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    # It unshares nothing, becomes no other user and kills nobody then.
    confined = plan.kind == "python" and tid_address > 0 and plan.uid < 0 and plan.ruleset >= 0
    outfit = child.prepare(plan, inherit_filter=confined)
    fork = linux.sibling_maker(tid_address) if tid_address else os.fork
    reap, become_child = watch.reap, child.main
    receive, send, close = wire.receive_body, channel.send, os.close
    unshare, setns, chdir = linux.unshare, linux.setns, os.chdir
    mount_ns, pid_ns = linux.CLONE_NEWNS, linux.CLONE_NEWPID
    if outfit.confine is not None:
        outfit.confine()
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        try:
            message, fds = receive(channel)
        except EOFError:
            os._exit(0)
        if message[:1] == _REAP:
            usage = reap(*_PID.unpack_from(message, 1))
            if not nested:
                kill_descendants(own_pid)
            send(_USAGE.pack(*usage))
            continue
        folder = message[1:].decode()
        try:
            if len(fds) > _NUM_PLAIN_FDS:
                setns(fds[-1], mount_ns)
                chdir(folder)
            if unshared:
                unshare(pid_ns)
            pid = fork()
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            gc.enable()
            atfork.run_in_child()
            become_child(outfit, folder, fds[0], fds[1])
        if unshared:
            setns(pidfd, pid_ns)
        for fd in fds:
            close(fd)
        send(_PID.pack(pid))
