"""The system calls that the sandbox needs and the standard library lacks.

Every function raises `OSError` with the call's name, so that a jail that cannot be built says which
step the kernel refused.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewardsvc.verifiers.sandbox.syscalls import syscall_numbers

if TYPE_CHECKING:
    from rewardsvc.verifiers.sandbox.chain import Chain

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000
CLONE_THREAD = 0x0001_0000
_CLONE_PARENT = 0x0000_8000
_CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x0020_0000, 0x0100_0000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_NOATIME = 0x400
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, _MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
MADV_POPULATE_WRITE, MADV_COLLAPSE = 23, 25
_MAP_FAILED = ctypes.c_void_p(-1).value

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
_PR_GET_TID_ADDRESS = 40
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
# NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock.
_SECUREBITS_ALL = 0x03 | 0x0C | 0xC0
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_HEADER = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)

_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_RESOLVE_NO_XDEV = 0x01

_libc = ctypes.CDLL(None, use_errno=True)
# For calls between one fork and the next, where each object that is touched is a page to copy:
# bound once, without a record of errno, and without C types about the numbers. ctypes makes a C int
# of each, which on the processors that the filter knows fills its register.
_lean = ctypes.PyDLL(None)
_unshare, _setns = _lean.unshare, _lean.setns
_raw_syscall = _lean.syscall
_errno_location = _lean.__errno_location
_errno_location.restype = ctypes.c_void_p


def _check(result: int, name: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _syscall(name: str, *args: object) -> int:
    number = syscall_numbers()[name]
    return _check(int(_libc.syscall(ctypes.c_long(number), *args)), name)


@dataclass(frozen=True, slots=True)
class Call:
    """A system call, to be made now or as part of a `chain`.

    Attributes:
        name: Of the call.
        args: Numbers, and contents of memory that it reads.
        keep: What `args` refers to by address.
        what: It does, for errors; its name if empty.
    """

    name: str
    args: tuple[int | bytes, ...]
    keep: tuple[object, ...] = ()
    what: str = ""

    def make(self) -> None:
        """Makes the call.

        Raises:
            OSError: If the kernel refuses.
        """
        if _raw_syscall(syscall_numbers()[self.name], *map(_as_word, self.args)) < 0:
            code = _errno()
            raise OSError(code, f"{self.what or self.name}: {os.strerror(code)}")

    def add_to(self, chain: Chain) -> None:
        """Adds the call to a chain, which ends there if the kernel refuses."""
        args = (chain.place(arg) if isinstance(arg, bytes) else arg for arg in self.args)
        chain.add(self.name, *args)


def _as_word(arg: int | bytes) -> bytes | ctypes.c_size_t:
    return arg if isinstance(arg, bytes) else ctypes.c_size_t(arg)


def _errno() -> int:
    """Of the last call by `_lean`."""
    return ctypes.c_int.from_address(_errno_location()).value


def unshare(flags: int) -> None:
    """Leaves the namespaces in `flags` for new ones; a pid namespace begins with the next fork."""
    if _unshare(flags) < 0:  # once more, with errno
        _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """Enters the namespace (or, for a pidfd, the process's namespace) of type `kind`."""
    if _setns(fd, kind) < 0:
        _check(_libc.setns(fd, kind), "setns")


def thread_id_address() -> int:
    """Where the C library keeps the number of the calling thread; 0 if the kernel cannot say."""
    address = ctypes.c_size_t()
    refused = _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0)
    return 0 if refused else address.value


def sibling_arguments(tid_address: int) -> tuple[int, ...]:
    """What `sibling_maker` calls clone(2) with."""
    flags = CLONE_NEWPID | _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    # The order of the last two depends on the processor; only one of them is used.
    return flags, 0, 0, tid_address, tid_address


def sibling_maker(tid_address: int) -> Callable[[], int]:
    """A function that forks as `os.fork` does, but for a child of this process's parent that is the
    first of a new pid namespace.

    It leaves out what the C library and the interpreter do about a fork, all of which is about
    locks that another thread may hold: the process must have no other. It returns the new process's
    id, 0 in that process, and the negative of an error number if the kernel refuses.

    Args:
        tid_address: From `thread_id_address`; the child's number must be put there.
    """
    number = syscall_numbers()["clone"]
    flags, *others = map(ctypes.c_size_t, sibling_arguments(tid_address))

    def make() -> int:
        pid: int = _raw_syscall(number, flags, *others)
        return pid if pid >= 0 else -_errno()

    return make


def map_memory(length: int, access: int) -> int:
    """Address of new memory of this process's own.

    Args:
        length: In bytes.
        access: Of `PROT_READ` and the others; 0 to reserve addresses only.

    Raises:
        OSError: If there is none.
    """
    mmap = ctypes.CDLL(None, use_errno=True).mmap  # a binding of its own: the type is not shared
    mmap.restype = ctypes.c_void_p
    flags = MAP_PRIVATE | _MAP_ANONYMOUS
    address: int = mmap(None, ctypes.c_size_t(length), access, flags, -1, ctypes.c_long(0))
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


def make_executable(address: int, length: int) -> None:
    """Makes memory readable and executable, and nothing else.

    Raises:
        OSError: If the kernel refuses.
    """
    Call("mprotect", (address, length, PROT_READ | PROT_EXEC)).make()


def mount_call(source: str, target: str, kind: str, flags: int, *, data: str = "") -> Call:
    """mount(2)."""
    texts = [text.encode() + b"\0" for text in (source, target, kind, data)]
    what = f"mount {kind or 'bind'} on {target}"
    return Call("mount", (*texts[:3], flags, texts[3]), what=what)


def mount(source: str, target: str, kind: str, flags: int, *, data: str = "") -> None:
    """Makes `mount_call`."""
    mount_call(source, target, kind, flags, data=data).make()


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(flags)), f"umount {target}")


def make_read_only(target: str, *, nodev: bool = True) -> None:
    """Makes the mount at `target`, and all below it, read-only and deaf to set-user-id bits.

    A plain remount would only change the topmost mount, and would fail on flags that an outer
    namespace has locked.
    """
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | (_MOUNT_ATTR_NODEV if nodev else 0)
    attr = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall(
        "mount_setattr",
        ctypes.c_int(_AT_FDCWD),
        target.encode(),
        ctypes.c_uint(_AT_RECURSIVE),
        attr,
        ctypes.c_size_t(len(attr)),
    )


def pivot_root(new_root: str) -> None:
    """Makes `new_root`, a mount point, the root, and detaches the old one altogether."""
    os.chdir(new_root)
    # With both arguments ".", the old root is stacked on the new one, and needs no folder in it.
    _syscall("pivot_root", b".", b".")
    umount(".")
    os.chdir("/")


def prctl_call(option: int, value: int = 0) -> Call:
    """prctl(2) with one argument."""
    return Call("prctl", (option, value))


def prctl(option: int, value: int = 0) -> None:
    """Makes `prctl_call`."""
    prctl_call(option, value).make()


def _prctl(option: int, value: int, name: str) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), name)


def set_no_new_privs() -> None:
    """No exec will ever gain privileges again, in this process and those it starts."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")


def empty_bounding_set() -> None:
    """Nothing that this process or its children exec can hold a capability.

    Those held now stay until `NO_CAPABILITIES`.
    """
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            _prctl(_PR_CAPBSET_DROP, capability, "capbset_drop")
        except OSError:
            break  # the kernel knows no capability of this number
    _prctl(_PR_SET_SECUREBITS, _SECUREBITS_ALL, "securebits")


NO_CAPABILITIES = Call("capset", (_CAPABILITY_HEADER, bytes(6 * 4)))
"""Gives up every capability, for good; ambient ones go with the others."""


def seccomp_call(program: bytes) -> Call:
    """The call that installs a BPF program; needs `set_no_new_privs` first.

    Args:
        program: Instructions of eight bytes.
    """
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    return Call("prctl", (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head), keep=(code,))


def install_seccomp(program: bytes) -> None:
    """Makes `seccomp_call`."""
    seccomp_call(program).make()


def landlock_abi() -> int:
    """Version of Landlock in this kernel.

    Raises:
        OSError: If there is none, or it is switched off.
    """
    return _syscall(
        "landlock_create_ruleset",
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint(_LANDLOCK_CREATE_RULESET_VERSION),
    )


def landlock_create(fs: int, net: int, scoped: int) -> int:
    """A new ruleset that handles these rights; its descriptor."""
    abi = landlock_abi()
    attr = struct.pack("=QQQ", fs, net, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    return _syscall("landlock_create_ruleset", attr, ctypes.c_size_t(len(attr)), ctypes.c_uint(0))


def landlock_allow(ruleset: int, path: str, rights: int) -> None:
    """Allows `rights` on `path` and everything below it."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        attr = struct.pack("=Qi", rights, fd)
        _syscall(
            "landlock_add_rule",
            ctypes.c_int(ruleset),
            ctypes.c_int(_LANDLOCK_RULE_PATH_BENEATH),
            attr,
            ctypes.c_uint(0),
        )
    finally:
        os.close(fd)


def landlock_call(ruleset: int) -> Call:
    """Holds a process and its children to the ruleset; needs `set_no_new_privs` first."""
    return Call("landlock_restrict_self", (ruleset, 0))


def open_beneath(folder: int, path: str) -> int:
    """Opens a file below `folder` for reading, through no symbolic link and across no mount.

    Never blocks, not even on a FIFO. The caller still has to look at what kind of file it is.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
    how = struct.pack("=QQQ", flags, 0, resolve)
    return _syscall(
        "openat2", ctypes.c_int(folder), os.fsencode(path), how, ctypes.c_size_t(len(how))
    )


def inotify() -> int:
    """A descriptor from which reports about watched folders can be read, without waiting."""
    return _syscall("inotify_init1", ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC))


def watch_folder(reports_fd: int, path: str, mask: int) -> int:
    """Has changes of the kinds in `mask` reported; the number that reports carry."""
    args = ctypes.c_int(reports_fd), path.encode(), ctypes.c_uint32(mask)
    return _syscall("inotify_add_watch", *args)


def unwatch_folder(reports_fd: int, watch: int) -> None:
    """Ends reports about a folder."""
    _syscall("inotify_rm_watch", ctypes.c_int(reports_fd), ctypes.c_int(watch))


def process_cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, in nanoseconds, without its children.

    Raises:
        OSError: If there is no such process.
    """
    # How clock_getcpuclockid(3) makes a clock of a pid.
    return time.clock_gettime_ns(((~pid) << 3) | 2)
