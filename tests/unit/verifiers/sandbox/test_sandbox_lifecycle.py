"""What a sandbox leaves behind, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from rewardsvc.verifiers.code import CodeVerifier, StdioTests
from rewardsvc.verifiers.sandbox import Limits, RunStatus, Sandbox, SandboxError
from rewardsvc.verifiers.sandbox.cgroups import CgroupHome, find_home, group_folders, sweep
from rewardsvc.verifiers.sandbox.nursery import NUM_WARM


def descendants() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True)}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def cgroups_of(pids: set[int]) -> list[Path]:
    home = find_home()
    if home is None:
        return []
    return [f for pid in pids for f in group_folders(home, pid) if f.exists()]


def test_close_leaves_no_process_descriptor_mount_or_cgroup() -> None:
    with Sandbox(num_slots=1) as warm_up:
        assert warm_up.run("python", "pass").ok
    gc.collect()  # what earlier tests have left must not go in the middle of this one
    before, mounts = open_descriptors(), Path("/proc/self/mounts").read_text()
    children = descendants()
    sandbox = Sandbox(num_slots=2)
    limits = Limits(cpu_ms=200, wall_ms=1000, memory_mib=64)
    for code in (
        "print(1)",
        "while True: pass",
        "x = bytearray(1 << 40)",
        "import os; os._exit(3)",
    ):
        sandbox.run("python", code, limits=limits)
    sandbox.run("c", "#include <unistd.h>\nint main(){if (!fork()) sleep(60);}")
    ours = descendants() - children
    assert ours
    assert find_home() is None or cgroups_of(ours)
    sandbox.close()
    assert not ours & set(psutil.pids())
    assert cgroups_of(ours) == []
    gc.collect()
    assert open_descriptors() == before
    assert Path("/proc/self/mounts").read_text() == mounts


def test_descriptors_and_processes_do_not_grow_with_runs() -> None:
    others = descendants()
    with Sandbox(num_slots=1) as sandbox:
        sandbox.run("python", "pass")
        before = open_descriptors()
        for _ in range(30):
            sandbox.run("python", "open('x', 'w').write('y')", fetch=["x"])
        assert open_descriptors() == before
        # Keeper, porter, supervisor, the one that forks, and the children that wait.
        assert wait_until(lambda: len(descendants() - others) == 4 + NUM_WARM)


def test_closed_sandbox_says_so() -> None:
    sandbox = Sandbox(num_slots=1)
    sandbox.close()
    sandbox.close()
    result = sandbox.run("python", "pass")
    assert result.status is RunStatus.SANDBOX_FAILURE
    assert "closed" in result.message
    with pytest.raises(SandboxError, match="closed"):
        sandbox.start()


def test_forgotten_sandbox_ends_its_processes() -> None:
    sandbox = Sandbox(num_slots=1)
    children = descendants()
    sandbox.run("python", "pass")
    ours = descendants() - children
    assert ours
    del sandbox
    gc.collect()
    assert wait_until(lambda: not ours & descendants())


CHAIN = ["keeper", "porter", "supervisor", "forker", "child"]


def member(keeper: int, name: str) -> psutil.Process:
    """A process of a slot; of the forkers and of the children, the oldest."""
    found = psutil.Process(keeper)
    for _ in range(min(CHAIN.index(name), CHAIN.index("supervisor"))):
        (found,) = found.children()
    if name in ("forker", "child"):
        return min(below(found, name), key=lambda process: process.pid)
    return found


def below(supervisor: psutil.Process, name: str) -> list[psutil.Process]:
    """The supervisor's forkers, or its other children, which have pid namespaces of their own."""
    own = Path(f"/proc/{supervisor.pid}/ns/pid").readlink()
    return [
        process
        for process in supervisor.children()
        if (Path(f"/proc/{process.pid}/ns/pid").readlink() == own) == (name == "forker")
    ]


@pytest.mark.parametrize("name", CHAIN)
def test_next_run_works_after_a_kill_between_runs(name: str) -> None:
    with Sandbox(num_slots=1) as sandbox:
        sandbox.start()
        victim = member(sandbox.pids()[0], name)
        family = {victim.pid, *(p.pid for p in victim.children(recursive=True))}
        os.kill(victim.pid, signal.SIGKILL)
        assert wait_until(lambda: all(not psutil.pid_exists(p) or is_zombie(p) for p in family))
        assert sandbox.run("python", "print(1)").stdout == b"1\n"


@pytest.mark.parametrize("name", ["supervisor", "forker"])
def test_a_run_whose_slot_dies_before_it_has_begun_is_given_to_another_slot(name: str) -> None:
    with Sandbox(num_slots=1) as sandbox, ThreadPoolExecutor(1) as threads:
        sandbox.start()
        keeper = sandbox.pids()[0]
        supervisor = member(keeper, "supervisor")
        supervisor.suspend()
        waiting = threads.submit(sandbox.run, "python", "print(1)")
        assert wait_until(lambda: not sandbox.pids())
        time.sleep(0.2)
        victim = member(keeper, name).pid
        os.kill(victim, signal.SIGKILL)
        assert wait_until(lambda: is_zombie(victim))
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.resume()
        result = waiting.result(timeout=30)
        assert result.ok, result
        assert result.stdout == b"1\n"


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("language", ["python", "c"])
@pytest.mark.parametrize("name", CHAIN)
def test_kill_during_a_run_is_a_sandbox_failure_and_the_next_run_works(
    name: str, language: str
) -> None:
    code = {
        "python": "import time\nopen('ready', 'w')\ntime.sleep(60)",
        "c": "#include <unistd.h>\nint main(){sleep(60);}",
    }[language]
    others = descendants()
    with Sandbox(num_slots=1) as sandbox, ThreadPoolExecutor(1) as threads:
        sandbox.start()
        program = sandbox.compile(language, code)
        if language == "c":  # so that the slot's first children are of this kind
            sandbox.run_program(program, limits=Limits(cpu_ms=100, wall_ms=1))
        keeper = sandbox.pids()[0]
        waiting = threads.submit(sandbox.run_program, program)
        assert wait_until(lambda: not sandbox.pids())
        time.sleep(0.2)
        family = descendants() - others
        running = busiest_branch(keeper, name, language)
        os.kill(running, signal.SIGKILL)
        result = waiting.result(timeout=30)
        assert result.status is RunStatus.SANDBOX_FAILURE, result
        assert result.message
        assert sandbox.run("python", "print(1)").stdout == b"1\n"
        if name != "child":
            assert wait_until(lambda: not family & descendants())
    assert not descendants() - others
    assert cgroups_of({keeper, *family}) == []


def busiest_branch(keeper: int, name: str, language: str) -> int:
    """A process of a slot that runs a program: of forkers and children, those of the program."""
    if name not in ("forker", "child"):
        return int(member(keeper, name).pid)
    found = below(member(keeper, "supervisor"), name)
    oldest_first = sorted(found, key=lambda process: process.pid)
    if name == "forker":
        return int(oldest_first[0 if language == "python" else -1].pid)
    if language == "python":  # asleep in the program, not in the wait for an order
        return int(oldest_first[0].pid)
    return next(int(child.pid) for child in oldest_first if child.children())


def test_nothing_survives_a_killed_grader() -> None:
    code = (
        "import sys\nfrom rewardsvc.verifiers.sandbox import Sandbox\n"
        "s = Sandbox(num_slots=2)\ns.start()\nprint('ready', flush=True)\n"
        "s.run('python', 'import time; time.sleep(120)')"
    )
    grader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert grader.stdout is not None
    assert grader.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    family = {p.pid for p in psutil.Process(grader.pid).children(recursive=True)}
    assert len(family) >= 4
    grader.kill()
    grader.wait()
    grader.stdout.close()
    assert wait_until(lambda: not family & set(psutil.pids()))
    assert wait_until(lambda: cgroups_of(family) == [])


def test_cgroups_of_killed_owners_are_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    home = CgroupHome(version=2, memory=tmp_path, pids=tmp_path)
    stale, mine = group_folders(home, dead.pid)[0], group_folders(home, os.getpid())[0]
    for folder in (stale, mine, tmp_path / "other"):
        folder.mkdir()
    sweep(home)
    assert not stale.exists()
    assert mine.exists()
    assert (tmp_path / "other").exists()


def run_in_fork(sandbox: Sandbox, results: multiprocessing.SimpleQueue[bytes]) -> None:
    results.put(sandbox.run("python", "print('child')").stdout)
    sandbox.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_worker_has_slots_of_its_own() -> None:
    with Sandbox(num_slots=1) as sandbox:
        assert sandbox.run("python", "print('parent')").stdout == b"parent\n"
        keeper = sandbox.pids()
        context = multiprocessing.get_context("fork")
        results: multiprocessing.SimpleQueue[bytes] = context.SimpleQueue()
        worker = context.Process(target=run_in_fork, args=(sandbox, results))
        worker.start()
        assert results.get() == b"child\n"
        worker.join(30)
        assert worker.exitcode == 0
        assert sandbox.pids() == keeper
        assert sandbox.run("python", "print('parent')").stdout == b"parent\n"


def test_many_threads_share_few_slots() -> None:
    with Sandbox(num_slots=2) as sandbox, ThreadPoolExecutor(16) as threads:
        runs = [threads.submit(sandbox.run, "python", f"print({i})") for i in range(48)]
        assert [r.result().stdout for r in runs] == [f"{i}\n".encode() for i in range(48)]


async def test_event_loop_keeps_turning_while_programs_run() -> None:
    with Sandbox(num_slots=2) as sandbox:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        turning = asyncio.create_task(turn())
        results = await asyncio.gather(
            *(sandbox.arun("python", "import time; time.sleep(0.2); print(1)") for _ in range(4))
        )
        turning.cancel()
        assert [r.stdout for r in results] == [b"1\n"] * 4
        assert turns > 5


async def test_plain_run_works_where_a_loop_is_running() -> None:
    """As in a cell of a notebook."""
    with Sandbox(num_slots=1) as sandbox:
        assert sandbox.run("python", "print(1)").stdout == b"1\n"


async def test_verifier_works_in_a_cell_of_a_notebook() -> None:
    """A cell is run by a loop that is running already: nothing may start another or block on it."""
    assert asyncio.get_running_loop().is_running()
    with Sandbox(num_slots=2) as sandbox:
        cell = (
            "verifier = CodeVerifier(sandbox=sandbox)\n"
            "suite = StdioTests([('1\\n', '2\\n'), ('2\\n', '3\\n')])\n"
            "verdict = verifier.verify(completion, suite)"
        )
        names = {
            "CodeVerifier": CodeVerifier,
            "StdioTests": StdioTests,
            "sandbox": sandbox,
            "completion": "```python\nprint(int(input()) + 1)\n```",
        }
        exec(compile(cell, "cell", "exec"), names)
        assert names["verdict"].reward == 1.0  # type: ignore[attr-defined]


def test_wait_for_a_slot_has_a_deadline() -> None:
    with Sandbox(num_slots=1, queue_timeout_seconds=0.2) as sandbox:
        sandbox.start()
        taken = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(sandbox.run, "python", "import time; time.sleep(2)")
            assert wait_until(lambda: not sandbox.pids())
            taken.set()
            result = sandbox.run("python", "pass")
            assert result.status is RunStatus.SANDBOX_FAILURE
            assert "no slot became free" in result.message
            assert slow.result().ok


def test_num_slots_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_slots is 0"):
        Sandbox(num_slots=0)
