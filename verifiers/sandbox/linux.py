"""The system calls that the sandbox needs and the standard library lacks.

Every function raises `OSError` with the call's name, so that a jail that cannot be built says which
step the kernel refused.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import time
from collections.abc import Callable

from rewardsvc.verifiers.sandbox.syscalls import syscall_numbers

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
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

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
_NO_CAPABILITIES = bytes(6 * 4)

_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_RESOLVE_NO_XDEV = 0x01

_libc = ctypes.CDLL(None, use_errno=True)
# For calls between one fork and the next, where each object that is touched is a page to copy:
# bound once, without a record of errno, and without C types about the numbers. ctypes makes a C int
# of each, which on the processors that the filter knows fills its register.
_lean = ctypes.PyDLL(None)
_unshare, _setns, _capset = _lean.unshare, _lean.setns, _lean.capset
_raw_prctl, _raw_syscall = _lean.prctl, _lean.syscall
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
    flags = CLONE_NEWPID | _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    # The order of the last two arguments depends on the processor; only one of them is used.
    address = ctypes.c_size_t(tid_address)

    def make() -> int:
        pid: int = _raw_syscall(number, flags, 0, 0, address, address)
        return pid if pid >= 0 else -ctypes.c_int.from_address(_errno_location()).value

    return make


def mount(source: str, target: str, kind: str, flags: int, *, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {kind or 'bind'} on {target}")


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


def prctl(option: int, value: int = 0) -> None:
    """prctl(2) with one argument."""
    if _raw_prctl(option, value, 0, 0, 0) < 0:
        _prctl(option, value, f"prctl({option})")


def _prctl(option: int, value: int, name: str) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), name)


def set_no_new_privs() -> None:
    """No exec will ever gain privileges again, in this process and those it starts."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")


def empty_bounding_set() -> None:
    """Nothing that this process or its children exec can hold a capability.

    Those held now stay until `drop_capabilities`.
    """
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            _prctl(_PR_CAPBSET_DROP, capability, "capbset_drop")
        except OSError:
            break  # the kernel knows no capability of this number
    _prctl(_PR_SET_SECUREBITS, _SECUREBITS_ALL, "securebits")


def drop_capabilities() -> None:
    """Gives up every capability, for good; ambient ones go with the others."""
    if _capset(_CAPABILITY_HEADER, _NO_CAPABILITIES) < 0:
        _check(_libc.capset(_CAPABILITY_HEADER, _NO_CAPABILITIES), "capset")


@functools.cache
def prepare_seccomp(program: bytes) -> tuple[ctypes.Array[ctypes.c_char], ...]:
    """A BPF program as the kernel wants it; a process that forks does this once for its children.

    Args:
        program: Instructions of eight bytes.

    Returns:
        A `struct sock_fprog`, and the code that it points to.
    """
    code = ctypes.create_string_buffer(program, len(program))
    address = ctypes.addressof(code)
    head = struct.pack("@HP", len(program) // 8, address)
    return ctypes.create_string_buffer(head, len(head)), code


def install_seccomp(program: bytes) -> None:
    """Installs a BPF program; needs `set_no_new_privs` first.

    Args:
        program: Instructions of eight bytes.
    """
    fprog, _ = prepare_seccomp(program)
    if _raw_prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0) < 0:
        _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0), "seccomp")


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


def landlock_restrict(ruleset: int) -> None:
    """Holds this process and its children to the ruleset; needs `set_no_new_privs` first."""
    number = syscall_numbers()["landlock_restrict_self"]
    if _raw_syscall(number, ruleset, 0) < 0:
        _check(_libc.syscall(number, ruleset, 0), "landlock_restrict_self")


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


def process_cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, in nanoseconds, without its children.

    Raises:
        OSError: If there is no such process.
    """
    # How clock_getcpuclockid(3) makes a clock of a pid.
    return time.clock_gettime_ns(((~pid) << 3) | 2)
