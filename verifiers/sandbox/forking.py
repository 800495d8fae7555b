"""The process that children are forked from.

A fork shares the memory of both sides until one of them writes. Whatever the forking process does
between two forks therefore costs twice: each page that it touches must be copied, because the last
child still has it. So the one that forks does nothing else. It holds an interpreter with
everything imported, waits on a socket, forks, and never sees an order, a result or a descriptor of
a run; all else is the supervisor's work, which never forks for a run.

For Python runs, where the processor allows it, even the interpreter stands still: the loop of
receiving, forking and answering is a `chain` of system calls, and what children share is a
`snapshot` of this process's memory. Otherwise it is the loop of `_serve_plainly`.

Messages are packed by hand rather than as JSON for the same reason: few instructions, few pages.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
from typing import NoReturn

from rewardsvc.verifiers.sandbox import (
    atfork,
    child,
    jail,
    linux,
    rehearsal,
    rootfs,
    snapshot,
    watch,
)
from rewardsvc.verifiers.sandbox.chain import NEXT, STOP, Chain, ChainError
from rewardsvc.verifiers.sandbox.jail import CHANNEL_FD, CONTROL_FD, JailPlan, Outfit
from rewardsvc.verifiers.sandbox.layers import Layer
from rewardsvc.verifiers.sandbox.linux import Call
from rewardsvc.verifiers.sandbox.snapshot import Stretch
from rewardsvc.verifiers.sandbox.stragglers import kill_descendants
from rewardsvc.verifiers.sandbox.wire import receive_body

FORK, REAP = b"F", b"R"
PID = struct.Struct("=i")
USAGE = struct.Struct("=iddq")
# What comes with a request, in this order, and the numbers that are free for it: a child's control
# socket, and the mount namespace that it is born into.
_CONTROL_FD, _ROOM_FD = 3, 4
_NUM_FDS = 2
_PROC_FD = CHANNEL_FD + 1
_MAX_REQUEST_BYTES = 256
_NUM_LOOP_ROWS = 7
# Beside those of a snapshot: the loop's and the jail's.
_NUM_OTHER_ROWS = 32
_MAX_ROWS = 2048
_DATA_BYTES = 1024
_MSG_CMSG_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_IOVEC = struct.Struct("@PN")
# name and its length, buffers and their number, control data and its length, flags.
_MSGHDR = struct.Struct("@PiPNPNi4x")
_FD_BYTES = 4


def serve(channel: socket.socket, plan: JailPlan, tid_address: int, proc_fd: int = -1) -> NoReturn:
    """The forking process, from its first instruction to its last.

    Args:
        channel: To the supervisor.
        plan: What the children wear.
        tid_address: If not 0, children are made as the supervisor's, which reaps them itself.
        proc_fd: A /proc in which this process is to be seen, or -1; no child gets to see it.
    """
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    _keep_only(channel.fileno(), plan.ruleset, proc_fd)
    rehearsal.warm_up()
    # It unshares nothing, becomes no other user and kills nobody then.
    confined = plan.kind == "python" and tid_address > 0 and plan.uid < 0 and plan.ruleset >= 0
    outfit = jail.prepare(plan, inherit_filter=confined)
    os.dup2(channel.detach(), CHANNEL_FD, inheritable=False)
    if proc_fd >= 0:
        os.dup2(proc_fd, _PROC_FD, inheritable=False)
    _keep_only(CONTROL_FD, jail.RULESET_FD, CHANNEL_FD, _PROC_FD)
    _settle()
    loop = _make_loop(outfit, tid_address) if confined and proc_fd >= 0 else None
    os.closerange(_PROC_FD, _PROC_FD + 1)
    if outfit.confine is not None:
        outfit.confine()
    _settle()
    if loop is None:
        _serve_plainly(outfit, tid_address)
    loop.run()


def _keep_only(*fds: int) -> None:
    """Closes all descriptors but those that this process and its children need."""
    previous = 2
    for fd in sorted({*fds} - {-1}):
        os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, jail.MAX_FD)


def _settle() -> None:
    """Whatever there is now is not looked at by the garbage collections of children."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _wake() -> None:
    """What a forked child does first."""
    gc.enable()
    atfork.run_in_child()


class _Loop:
    """Receiving, forking and answering, again and again, with nothing of Python in between.

    Children go on in the same manner until their jail is on.
    """

    def __init__(
        self, chain: Chain, outfit: Outfit, tid_address: int, copies: list[Stretch]
    ) -> None:
        """Adds the rows.

        Args:
            chain: What else this process must do, after Python has stopped for good.
            outfit: What children wear; all its steps are system calls.
            tid_address: See `linux.sibling_maker`.
            copies: Memory that children will write to.
        """
        self._chain, self._outfit = chain, outfit
        request = _message_header(chain)
        folder = chain.place(rootfs.WORK_DIR.encode() + b"\0")
        answer = chain.place(bytes(8))
        first = chain.num_rows
        closing, telling, in_child = first + 4, first + 6, first + _NUM_LOOP_ROWS
        chain.add("recvmsg", CHANNEL_FD, request, _MSG_CMSG_CLOEXEC, zero=STOP)
        chain.add("setns", _ROOM_FD, linux.CLONE_NEWNS, into=answer, below=closing)
        chain.add("chdir", folder, into=answer, below=closing)
        clone = linux.sibling_arguments(tid_address)
        chain.add("clone", *clone, into=answer, zero=in_child, below=closing)
        chain.add("close", _CONTROL_FD, below=NEXT)
        chain.add("close", _ROOM_FD, below=NEXT)
        chain.add("write", CHANNEL_FD, answer, PID.size, above=first, zero=STOP)
        assert chain.num_rows == in_child == telling + 1
        snapshot.add_copies(chain, copies)
        jail.add_steps(chain, outfit, _CONTROL_FD)
        self._in_child = in_child

    def run(self) -> NoReturn:
        """Serves the supervisor until it is gone; a child, the order that it is given."""
        row, result = self._chain.run()
        if row < self._in_child:
            os._exit(0)
        try:
            _wake()
            if result < 0:
                raise OSError(-result, f"{self._chain.name(row)}: {os.strerror(-result)}")
            child.await_order(self._outfit, rootfs.WORK_DIR)
        except EOFError:
            os._exit(0)
        except BaseException as error:
            child.report(error, CONTROL_FD)
        finally:
            os._exit(child.NEVER_STARTED)


def _message_header(chain: Chain) -> int:
    """Address of a `struct msghdr` with room for a request."""
    body = chain.place(bytes(_MAX_REQUEST_BYTES))
    # Exactly as many as come: the kernel writes here how much it has used, for the next message.
    space = socket.CMSG_SPACE(_NUM_FDS * _FD_BYTES)
    vector = chain.place(_IOVEC.pack(body, _MAX_REQUEST_BYTES))
    return chain.place(_MSGHDR.pack(0, 0, vector, 1, chain.place(bytes(space)), space, 0))


def _make_loop(outfit: Outfit, tid_address: int) -> _Loop | None:
    """A loop after which nothing of this process's memory is its own; None if that cannot be."""
    if not all(isinstance(step, Call) for step in outfit.steps):
        return None
    try:
        chain = Chain(max_rows=_MAX_ROWS, data_bytes=_DATA_BYTES)
        regions = snapshot.private_memory(_PROC_FD, chain)
        copies = rehearsal.written(outfit.plan, regions, _PROC_FD, _wake)
        if snapshot.num_rows(regions) + len(copies) + _NUM_OTHER_ROWS > _MAX_ROWS:
            return None
        snapshot.add_move(chain, regions)
    except (ChainError, OSError):
        return None  # not with this processor, this kernel, or for want of memory
    return _Loop(chain, outfit, tid_address, copies)


def _serve_plainly(outfit: Outfit, tid_address: int) -> NoReturn:
    plan = outfit.plan
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, CHANNEL_FD)
    own_pid = os.getpid()
    nested = Layer.PID_NS in plan.layers
    unshared = nested and not tid_address
    pidfd = os.pidfd_open(own_pid) if unshared else -1
    if not nested:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    fork = linux.sibling_maker(tid_address) if tid_address else os.fork
    reap, become_child = watch.reap, child.main
    receive, send, close = receive_body, channel.send, os.close
    unshare, setns, chdir = linux.unshare, linux.setns, os.chdir
    mount_ns, pid_ns = linux.CLONE_NEWNS, linux.CLONE_NEWPID
    while True:
        try:
            message, fds = receive(channel)
        except EOFError:
            os._exit(0)
        if message[:1] == REAP:
            usage = reap(*PID.unpack_from(message, 1))
            if not nested:
                kill_descendants(own_pid)
            send(USAGE.pack(*usage))
            continue
        folder = message[1:].decode()
        try:
            if len(fds) == _NUM_FDS:
                setns(fds[-1], mount_ns)
                chdir(folder)
            if unshared:
                unshare(pid_ns)
            pid = fork()
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            _wake()
            become_child(outfit, folder, fds[0])
        if unshared:
            setns(pidfd, pid_ns)
        for fd in fds:
            close(fd)
        send(PID.pack(pid))
