"""The system call filter, generated as BPF.

Two profiles. *Python* denies by default: the harness has imported and opened all it needs when the
filter falls, so what remains is a short list of calls. There is no socket, no exec, no new process,
no memfd, no io_uring. *Exec* is for compilers, and for programs of languages whose runtimes are
open-ended: it allows by default and denies what reaches for the kernel's large or rarely used
surfaces. Both kill calls made through another calling convention (int 0x80, x32), which would
otherwise carry different numbers past the filter.

A denied call fails with EPERM rather than killing, so that the program sees an ordinary error; and
with ENOSYS where runtimes probe for a newer call and fall back (clone3).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import socket
import struct
from dataclasses import dataclass, replace
from typing import TypeAlias

from rewardsvc.verifiers.sandbox.linux import CLONE_THREAD
from rewardsvc.verifiers.sandbox.syscalls import syscall_numbers

_Instruction: TypeAlias = tuple[int, int, int, int]
_Body: TypeAlias = tuple[_Instruction, ...]

_LD_W_ABS, _JA, _JEQ, _JGE, _JSET, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_MAX_JUMP = 255
_NR, _ARCH, _ARGS = 0, 4, 16
_KILL_PROCESS, _ERRNO, _ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32_BIT = 0x4000_0000

# Namespace flags of clone: a fork that takes one of these is denied, an ordinary one is not.
_CLONE_NEW = 0x7E02_0080
# Of termios, which would be one more library to map in every process.
_TCGETS, _FIOCLEX, _FIONCLEX, _FIONBIO, _FIONREAD = 0x5401, 0x5451, 0x5450, 0x5421, 0x541B
# A file without a name: nobody is told that it is made.
_O_TMPFILE = 0x40_0000
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41

PYTHON_ALLOWED = frozenset(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range
    dup dup2 dup3 pipe pipe2 access faccessat faccessat2 stat lstat fstat newfstatat
    statx statfs fstatfs readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat
    rmdir unlink unlinkat rename renameat renameat2 symlink symlinkat truncate ftruncate fallocate
    chmod fchmod fchmodat umask utimensat fsync fdatasync sync_file_range copy_file_range
    sendfile splice tee fadvise64 select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl
    epoll_wait epoll_pwait eventfd eventfd2 mmap munmap mprotect mremap madvise msync mincore brk
    membarrier rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait
    sigaltstack pause alarm setitimer getitimer kill tkill tgkill exit exit_group restart_syscall
    getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp
    getpgid getsid sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min getcpu clock_gettime clock_getres clock_nanosleep
    nanosleep gettimeofday time times timerfd_create timerfd_settime timerfd_gettime timer_create
    timer_settime timer_gettime timer_getoverrun timer_delete futex set_robust_list get_robust_list
    rseq set_tid_address arch_prctl uname sysinfo getrlimit setrlimit getrusage getrandom capget
    wait4 waitid recvfrom
    """.split()  # noqa: SIM905 - a hundred names, one to a line, would say no more
)
"""Calls that a Python run may make with any arguments."""

_SIGNALS = frozenset({"kill", "tkill", "tgkill"})

_FORKER_ONLY = frozenset({"setns", "sendmsg", "setsid", "capset", "landlock_restrict_self"})
"""What the process that forks Python runs does, or they do on their way into the jail, and no
program may."""

_LEFT_TO_RUNS = frozenset({"clone", "prctl", "recvmsg", "sendto"})
"""Calls whose arguments decide, and that are made with others on the way into the jail."""

EXEC_DENIED = frozenset(
    """
    mount umount2 pivot_root chroot setns unshare mount_setattr open_tree move_mount fsopen
    fsconfig fsmount fspick ptrace process_vm_readv process_vm_writev process_madvise kcmp
    pidfd_getfd bpf userfaultfd perf_event_open keyctl add_key request_key io_uring_setup
    io_uring_enter io_uring_register init_module finit_module delete_module kexec_load
    kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd syslog settimeofday
    clock_settime clock_adjtime adjtimex sethostname setdomainname iopl ioperm name_to_handle_at
    open_by_handle_at lookup_dcookie nfsservctl vhangup modify_ldt memfd_create memfd_secret shmget
    shmat shmctl shmdt msgget msgsnd msgrcv msgctl semget semop semctl semtimedop mq_open mq_unlink
    mq_timedsend mq_timedreceive mq_notify mq_getsetattr fanotify_init fanotify_mark mknod mknodat
    migrate_pages move_pages landlock_create_ruleset landlock_add_rule landlock_restrict_self
    seccomp socket
    """.split()  # noqa: SIM905 - a hundred names, one to a line, would say no more
)
"""Calls that a compiled program may not make at all."""


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """Decides a call by the low word of one argument.

    Attributes:
        argument: Which argument, from 0.
        values: Allowed values; of a mask, the bits that must be set.
        mask: If set, `values` is unused: the call is allowed if all `require` bits are set and none
            of `forbid`.
        require: Bits of a masked rule that must be set.
        forbid: Bits of a masked rule that must not be set.
    """

    argument: int
    values: tuple[int, ...] = ()
    mask: bool = False
    require: int = 0
    forbid: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """One filter.

    Attributes:
        rules: Calls that depend on an argument, by name.
        listed: Calls that are allowed (deny by default) or denied (allow by default).
        allow_by_default: What becomes of a call that is not named at all.
        missing: Calls that fail with ENOSYS, so that the caller falls back to an older one.
    """

    rules: dict[str, ArgumentRule]
    listed: frozenset[str]
    allow_by_default: bool
    missing: frozenset[str]


def python_profile(control_fd: int, *, signals: bool = True) -> Profile:
    """The filter of a Python run.

    Args:
        control_fd: The only descriptor on which `recvmsg` works: the order to run arrives there
            after the filter has fallen, and it is closed before the program starts.
        signals: Whether the program may send signals; not where no pid namespace bounds them.
    """
    fcntls = (
        fcntl.F_DUPFD,
        fcntl.F_DUPFD_CLOEXEC,
        fcntl.F_GETFD,
        fcntl.F_SETFD,
        fcntl.F_GETFL,
        fcntl.F_SETFL,
        fcntl.F_GETLK,
        fcntl.F_SETLK,
        fcntl.F_SETLKW,
    )
    ioctls = (_TCGETS, _FIOCLEX, _FIONCLEX, _FIONBIO, _FIONREAD)
    return Profile(
        rules={
            "clone": ArgumentRule(0, mask=True, require=CLONE_THREAD, forbid=_CLONE_NEW),
            "fcntl": ArgumentRule(1, values=fcntls),
            "ioctl": ArgumentRule(1, values=ioctls),
            "open": ArgumentRule(1, mask=True, forbid=_O_TMPFILE),
            "openat": ArgumentRule(2, mask=True, forbid=_O_TMPFILE),
            "prctl": ArgumentRule(0, values=(_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)),
            "prlimit64": ArgumentRule(0, values=(0,)),
            "recvmsg": ArgumentRule(0, values=(control_fd,)),
            # asyncio's event loops wake themselves through a pair: bytes to its other end, without
            # an address or descriptors. The call `socket` itself stays denied.
            "socketpair": ArgumentRule(0, values=(socket.AF_UNIX,)),
            "sendto": ArgumentRule(4, values=(0,)),
        },
        listed=PYTHON_ALLOWED if signals else PYTHON_ALLOWED - _SIGNALS,
        allow_by_default=False,
        missing=frozenset({"clone3", "openat2"}),
    )


def forker_profile(control_fd: int) -> Profile:
    """The filter of a process that forks Python runs, which they inherit.

    The kernel takes a tenth of a millisecond to install `python_profile`. So most of it falls once,
    here, and what each run adds is `remainder_profile`; both together decide as `python_profile`
    does.

    Args:
        control_fd: As for `python_profile`.
    """
    whole = python_profile(control_fd)
    rules = {name: rule for name, rule in whole.rules.items() if name not in _LEFT_TO_RUNS}
    return replace(whole, rules=rules, listed=whole.listed | _LEFT_TO_RUNS | _FORKER_ONLY)


def remainder_profile(control_fd: int) -> Profile:
    """What `forker_profile` allows and `python_profile` does not is denied, and nothing else.

    Args:
        control_fd: As for `python_profile`.
    """
    rules = python_profile(control_fd).rules
    return Profile(
        rules={name: rules[name] for name in _LEFT_TO_RUNS},
        listed=_FORKER_ONLY,
        allow_by_default=True,
        missing=frozenset(),
    )


def exec_profile() -> Profile:
    """The filter of compilers and of programs in other languages.

    Of sockets only `socketpair` remains, which reaches nobody: runtimes use it between threads.
    """
    return Profile(
        rules={"clone": ArgumentRule(0, mask=True, forbid=_CLONE_NEW)},
        listed=EXEC_DENIED,
        allow_by_default=True,
        missing=frozenset({"clone3"}),
    )


@functools.cache
def python_program(control_fd: int, *, signals: bool = True) -> bytes:
    """The filter of Python runs, as BPF; the supervisor makes it once, before it forks."""
    return compile_profile(python_profile(control_fd, signals=signals))


@functools.cache
def forker_program(control_fd: int) -> bytes:
    """The filter of processes that fork Python runs, as BPF."""
    return compile_profile(forker_profile(control_fd))


@functools.cache
def remainder_program(control_fd: int) -> bytes:
    """What runs add to the filter that they inherit, as BPF."""
    return compile_profile(remainder_profile(control_fd))


@functools.cache
def exec_program() -> bytes:
    """The filter of other runs, as BPF."""
    return compile_profile(exec_profile())


def compile_profile(profile: Profile, machine: str | None = None) -> bytes:
    """The BPF program of a profile.

    Args:
        profile: What to allow.
        machine: "x86_64" or "aarch64"; this machine if None.

    Returns:
        Instructions of eight bytes each, as `seccomp` takes them.
    """
    machine = machine or os.uname().machine
    numbers = syscall_numbers(machine)
    denied: _Body = ((_RET, 0, 0, _ERRNO | errno.EPERM),)
    allowed: _Body = ((_RET, 0, 0, _ALLOW),)
    listed, default = (denied, allowed) if profile.allow_by_default else (allowed, denied)
    bodies = {numbers[name]: listed for name in profile.listed & numbers.keys()}
    for name, rule in profile.rules.items():
        if name in numbers:
            bodies[numbers[name]] = _argument_check(rule)
    for name in profile.missing & numbers.keys():
        bodies[numbers[name]] = ((_RET, 0, 0, _ERRNO | errno.ENOSYS),)
    if machine == "x86_64":
        bodies[_X32_BIT] = ((_RET, 0, 0, _KILL_PROCESS),)
    code: _Body = (
        (_LD_W_ABS, 0, 0, _ARCH),
        (_JEQ, 1, 0, _AUDIT_ARCH[machine]),
        (_RET, 0, 0, _KILL_PROCESS),
        (_LD_W_ABS, 0, 0, _NR),
        *_search(_ranges(bodies, default)),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _ranges(bodies: dict[int, _Body], default: _Body) -> list[tuple[int, _Body]]:
    """First number and body of each run of numbers that are treated alike; from 0 to the end."""
    ranges: list[tuple[int, _Body]] = [(0, bodies.get(0, default))]
    for number in sorted({n for known in bodies for n in (known, known + 1)} - {0}):
        # Everything from the x32 bit on is one range: it has no end.
        body = bodies.get(min(number, _X32_BIT), default)
        if body != ranges[-1][1]:
            ranges.append((number, body))
    return ranges


def _search(ranges: list[tuple[int, _Body]]) -> _Body:
    """A binary search for the range of a number.

    The kernel runs a new filter once for every call that there is, to remember those that are
    always allowed; a list of comparisons takes it several times as long to install.
    """
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high = _search(ranges[:middle]), _search(ranges[middle:])
    first = ranges[middle][0]
    if len(low) <= _MAX_JUMP:
        return ((_JGE, len(low), 0, first), *low, *high)
    return ((_JGE, 0, 1, first), (_JA, 0, 0, len(low)), *low, *high)


def _argument_check(rule: ArgumentRule) -> _Body:
    """Instructions that end in a verdict either way; they never fall through."""
    denied = (_RET, 0, 0, _ERRNO | errno.EPERM)
    allowed = (_RET, 0, 0, _ALLOW)
    body: list[_Instruction] = [(_LD_W_ABS, 0, 0, _ARGS + 8 * rule.argument)]
    if not rule.mask:
        for value in rule.values:
            body += [(_JEQ, 0, 1, value), allowed]
        return (*body, denied)
    body += [(_JSET, 0, 1, rule.forbid), denied]
    if rule.require:
        body += [(_JSET, 1, 0, rule.require), denied]
    return (*body, allowed)
