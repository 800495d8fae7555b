"""What children inherit from the process that they are forked from, and what they do not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewardsvc.verifiers.sandbox import Limits, RunStatus, Sandbox
from rewardsvc.verifiers.sandbox.boot import ENVIRONMENT
from rewardsvc.verifiers.sandbox.jobs import Job


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_slots=1) as made:
        yield made


def test_environment_is_the_documented_one(sandbox: Sandbox) -> None:
    code = "import os\nprint(sorted(os.environ.items()))"
    assert sandbox.run("python", code).stdout.decode() == f"{sorted(ENVIRONMENT.items())}\n"


def test_forking_process_is_filtered_and_its_children_are_the_supervisors(
    sandbox: Sandbox,
) -> None:
    assert sandbox.run("python", "print(1)").stdout == b"1\n"
    (porter,) = _children(sandbox.pids()[0])
    (supervisor,) = _children(porter)
    below = _children(supervisor)  # the one that forks, and those that wait
    for pid in below:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        assert _children(pid) == []


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_c_library_knows_the_number_of_the_thread_it_runs_in(sandbox: Sandbox) -> None:
    # A mutex that a thread may lock again keeps the number of its owner, behind two other numbers.
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None)\n"
        "attributes, mutex = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)\n"
        "libc.pthread_mutexattr_init(attributes)\n"
        "libc.pthread_mutexattr_settype(attributes, 1)\n"
        "libc.pthread_mutex_init(mutex, attributes)\n"
        "libc.pthread_mutex_lock(mutex)\n"
        "print(int.from_bytes(mutex[8:12], 'little') == os.getpid() == 1)"
    )
    result = sandbox.run("python", code)
    assert result.stdout == b"True\n", result


def test_rehearsal_leaves_no_trace(sandbox: Sandbox) -> None:
    code = (
        "import gc, linecache, os, sys\n"
        "print(sys.argv, sys.stdin.read(), sys.modules['__main__'].__dict__ is globals())\n"
        "print(list(linecache.cache), gc.isenabled(), os.register_at_fork.__module__)\n"
        "print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, 'line' in globals())"
    )
    assert sandbox.run("python", code).stdout.decode().splitlines() == [
        "['main.py']  True",
        "['main.py'] True posix",
        "True True False",
    ]


def test_streams_are_seekable_files_or_pipes_as_they_really_are(sandbox: Sandbox) -> None:
    code = "import sys\nprint(sys.stdin.seekable(), sys.stdin.readline())"
    assert sandbox.run("python", code, stdin=b"x\n").stdout == b"True x\n\n"
    read, write = os.pipe()
    os.write(write, b"y\n")
    os.close(write)
    result = sandbox.execute(Job(sources={"code": code}, stdin_fd=read))
    os.close(read)
    assert result.stdout == b"False y\n\n"


def test_limits_of_one_run_are_not_those_of_the_next(sandbox: Sandbox) -> None:
    code = (
        "import resource as r\n"
        "print([r.getrlimit(k)[1] for k in (r.RLIMIT_CPU, r.RLIMIT_FSIZE, r.RLIMIT_NOFILE)])\n"
        "import os; print(os.statvfs('.').f_blocks * os.statvfs('.').f_frsize >> 20)"
    )
    for cpu_s, disk_mib in ((3, 8), (7, 16), (3, 8)):
        limits = Limits(cpu_ms=cpu_s * 1000, disk_mib=disk_mib, output_bytes=1)
        result = sandbox.run("python", code, limits=limits)
        full = sandbox.run("python", code, limits=Limits(cpu_ms=cpu_s * 1000, disk_mib=disk_mib))
        assert result.stdout == b"["
        text = full.stdout.decode()
        assert text == f"[{cpu_s + 1}, {(disk_mib << 20) + 1}, 64]\n{disk_mib}\n"


def test_kinds_of_runs_alternate(sandbox: Sandbox) -> None:
    for number in range(3):
        assert sandbox.run("python", f"print({number})").stdout == b"%d\n" % number
        assert sandbox.run("bash", f"echo {number}").stdout == b"%d\n" % number


FORK_AWARE = """
import os
SEEN = []
os.register_at_fork(after_in_child=lambda: SEEN.append("child"))
"""


def test_fork_handlers_of_preloaded_modules_run(tmp_path: Path) -> None:
    (tmp_path / "fork_aware.py").write_text(FORK_AWARE)
    tmp_path.chmod(0o755)
    with Sandbox(num_slots=1, python_path=[str(tmp_path)], preload=["fork_aware"]) as made:
        for _ in range(3):
            assert made.run("python", "import fork_aware; print(fork_aware.SEEN)").stdout == (
                b"['child']\n"
            )


def test_preloaded_module_with_threads_is_refused_by_name_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    tmp_path.chmod(0o755)
    with Sandbox(num_slots=1, python_path=[str(tmp_path)], preload=["threaded"]) as made:
        result = made.run("python", "print(1)")
    assert result.status is RunStatus.SANDBOX_FAILURE
    assert "started threads" in result.message
    assert "`preload`" in result.message
