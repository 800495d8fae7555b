"""The supervisor's end of the process that children are forked from; see `forking`."""

from __future__ import annotations

import os
import signal
import socket
from collections import deque

from rewardsvc.verifiers.sandbox import linux, watch, wire
from rewardsvc.verifiers.sandbox.forking import FORK, PID, REAP, USAGE, serve
from rewardsvc.verifiers.sandbox.jail import JailPlan
from rewardsvc.verifiers.sandbox.layers import Layer

_TIMEOUT_SECONDS = 30.0


class ForkerGoneError(Exception):
    """The process that forks has been killed, or hangs."""


class Forker:
    """The supervisor's end. Answers come in the order of the requests.

    Attributes:
        pidfd: Readable once the forking process is dead.
    """

    def __init__(self, plan: JailPlan, proc_fd: int = -1) -> None:
        """Forks the forking process, which closes what it has no use for.

        Args:
            plan: What its children wear.
            proc_fd: See `forking.serve`; the caller's to close.
        """
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Children of its own need less talk, but only a pid namespace of theirs ends their orphans.
        self._tid_address = linux.thread_id_address() if Layer.PID_NS in plan.layers else 0
        self._pid = os.fork()
        if self._pid == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                serve(theirs, plan, self._tid_address, proc_fd)
            finally:
                os._exit(1)
        theirs.close()
        self.pidfd = os.pidfd_open(self._pid)
        self._channel.settimeout(_TIMEOUT_SECONDS)
        self._num_asked = 0
        self._forked: deque[int] = deque()

    def fileno(self) -> int:
        """Readable when `forked_pid` has something to tell."""
        return self._channel.fileno()

    def ask(self, folder: str, control_fd: int, room_fd: int) -> None:
        """Asks for a child; `forked_pid` has its process id.

        Args:
            folder: Where it works.
            control_fd: Its end of its control socket; the caller's to close.
            room_fd: The mount namespace that it is born into, or -1; the caller's to close.
        """
        fds = (control_fd,) if room_fd < 0 else (control_fd, room_fd)
        try:
            wire.send_body(self._channel, FORK + folder.encode(), fds)
        except OSError as error:
            raise _gone(error) from error
        self._num_asked += 1

    def forked_pid(self) -> int:
        """Of the child that was asked for first and not told about yet.

        If the kernel refused, the negative of its error number.
        """
        while not self._forked:
            self._hear()
        return self._forked.popleft()

    def _hear(self) -> None:
        (pid,) = PID.unpack(self._answer(PID.size))
        self._num_asked -= 1
        self._forked.append(pid)

    def _answer(self, size: int) -> bytes:
        try:
            answer = self._channel.recv(size)
        except OSError as error:
            raise _gone(error) from error
        if not answer:
            raise ForkerGoneError("the process that forks was killed")
        return answer

    def reap(self, pid: int) -> watch.Usage:
        """Waits for a child that is dead or about to be."""
        if self._tid_address:
            return watch.reap(pid)
        try:
            self._channel.send(REAP + PID.pack(pid))
        except OSError as error:
            raise _gone(error) from error
        while self._num_asked:
            self._hear()
        status, user_s, system_s, peak_kib = USAGE.unpack(self._answer(USAGE.size))
        return status, user_s, system_s, peak_kib


def _gone(error: OSError) -> ForkerGoneError:
    return ForkerGoneError(f"the process that forks does not answer: {error}")
