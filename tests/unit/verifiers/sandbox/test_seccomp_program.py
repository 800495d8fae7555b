"""The generated filter, run by a small BPF machine, against what its profile says."""

from __future__ import annotations

import struct

import pytest

from rewardsvc.verifiers.sandbox.seccomp import (
    EXEC_DENIED,
    PYTHON_ALLOWED,
    compile_profile,
    exec_profile,
    forker_profile,
    python_profile,
    remainder_profile,
)
from rewardsvc.verifiers.sandbox.syscalls import syscall_numbers

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CONTROL_FD = 50


def decide(program: bytes, number: int, args: tuple[int, ...], arch: int) -> int:
    """What the filter answers to a call."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*args, *(0,) * (6 - len(args))))
    accumulator, at = 0, 0
    while True:
        code, yes, no, k = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x06:
            return int(k)
        elif code == 0x05:
            at += k
        else:
            taken = {
                0x15: accumulator == k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[code]
            at += yes if taken else no


@pytest.mark.parametrize("machine", ARCH)
def test_python_profile_allows_its_list_and_nothing_else(machine: str) -> None:
    program = compile_profile(python_profile(CONTROL_FD), machine)
    by_number = {number: name for name, number in syscall_numbers(machine).items()}
    by_argument = set(python_profile(CONTROL_FD).rules)
    for number in range(600):
        name = by_number.get(number, "")
        answer = decide(program, number, (0xFFFF, 0xFFFF), ARCH[machine])
        if name in PYTHON_ALLOWED:
            assert answer == ALLOW, name
        elif name in {"clone3", "openat2"}:
            assert answer == ENOSYS
        else:
            assert answer == EPERM or name in by_argument, name or number


@pytest.mark.parametrize("machine", ARCH)
@pytest.mark.parametrize(
    ("name", "args", "answer"),
    [
        ("clone", (0x3D0F00,), ALLOW),
        ("clone", (17,), EPERM),
        ("clone", (0x3D0F00 | 0x10000000,), EPERM),
        ("recvmsg", (CONTROL_FD,), ALLOW),
        ("recvmsg", (3,), EPERM),
        ("socketpair", (1,), ALLOW),
        ("socketpair", (2,), EPERM),
        ("sendto", (3, 0, 1, 0, 0), ALLOW),
        ("sendto", (3, 0, 1, 0, 0x7FFF0000), EPERM),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (1,), EPERM),
        ("fcntl", (0, 3), ALLOW),
        ("fcntl", (0, 1031), EPERM),
        ("fcntl", (0, 1024), EPERM),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
    ],
)
def test_python_profile_looks_at_arguments(
    machine: str, name: str, args: tuple[int, ...], answer: int
) -> None:
    program = compile_profile(python_profile(CONTROL_FD), machine)
    assert decide(program, syscall_numbers(machine)[name], args, ARCH[machine]) == answer


@pytest.mark.parametrize("machine", ARCH)
def test_the_filter_in_two_parts_decides_as_the_whole_one(machine: str) -> None:
    profiles = (python_profile, forker_profile, remainder_profile)
    whole, inherited, own = (compile_profile(p(CONTROL_FD), machine) for p in profiles)
    arguments = (0, 1, 3, 4, 15, 17, 22, CONTROL_FD, 1031, 0x5401, 0x3D0F00, 0x103D0F00)
    for number in (*range(600), 0x40000000 | 39):
        for one in arguments:
            for args in ((one, 0), (0, one), (one, one)):
                call = number, args, ARCH[machine]
                answers = {decide(inherited, *call), decide(own, *call)}
                # The kernel takes the strictest answer: killing, then failing, then allowing.
                strictest = next(a for a in (KILL, ENOSYS, EPERM, ALLOW) if a in answers)
                assert strictest == decide(whole, *call), call


@pytest.mark.parametrize("machine", ARCH)
def test_signals_are_denied_where_no_pid_namespace_bounds_them(machine: str) -> None:
    program = compile_profile(python_profile(CONTROL_FD, signals=False), machine)
    for name in ("kill", "tkill", "tgkill"):
        assert decide(program, syscall_numbers(machine)[name], (1,), ARCH[machine]) == EPERM
    assert decide(program, syscall_numbers(machine)["getpid"], (), ARCH[machine]) == ALLOW


@pytest.mark.parametrize("machine", ARCH)
def test_exec_profile_denies_its_list_and_namespaces(machine: str) -> None:
    program = compile_profile(exec_profile(), machine)
    numbers = syscall_numbers(machine)
    for name in EXEC_DENIED & numbers.keys():
        assert decide(program, numbers[name], (), ARCH[machine]) == EPERM, name
    for name in ("read", "execve", "mmap"):
        assert decide(program, numbers[name], (), ARCH[machine]) == ALLOW
    assert decide(program, numbers["clone"], (17,), ARCH[machine]) == ALLOW
    assert decide(program, numbers["clone"], (17 | 0x10000000,), ARCH[machine]) == EPERM
    assert decide(program, numbers["clone3"], (), ARCH[machine]) == ENOSYS


@pytest.mark.parametrize("profile", [python_profile(CONTROL_FD), exec_profile()])
def test_other_calling_conventions_are_killed(profile: object) -> None:
    program = compile_profile(profile, "x86_64")  # type: ignore[arg-type]
    assert decide(program, 20, (), 0x40000003) == KILL
    assert decide(program, 0x40000000 | 39, (), ARCH["x86_64"]) == KILL


def test_unknown_machine_is_named() -> None:
    with pytest.raises(ValueError, match="machine is 'vax'"):
        syscall_numbers("vax")


def test_each_listed_call_has_a_number_on_one_machine_at_least() -> None:
    known = set().union(*(syscall_numbers(machine) for machine in ARCH))
    assert known >= PYTHON_ALLOWED | EXEC_DENIED | set(python_profile(CONTROL_FD).rules)
