"""Runs thousands of programs, the abusive ones of the catalogue among them, and looks at what is
left.

Every program's end is compared with the one that it owes. Afterwards no process, mount, cgroup,
descriptor or temporary file may remain, and the sandbox's processes may not have grown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from timing import surroundings

from rewardsvc.verifiers.sandbox import Limits, RunStatus, Sandbox
from rewardsvc.verifiers.sandbox.cgroups import find_home, group_folders
from rewardsvc.verifiers.sandbox.nursery import NUM_WARM

SMALL = Limits(
    cpu_ms=300, wall_ms=4000, memory_mib=64, output_bytes=1 << 18, disk_mib=8, num_files=64
)
PROCESSES_PER_SLOT = 3 + 2 * (1 + NUM_WARM)
"""Keeper, porter, supervisor; for Python and for the rest one that forks and children that wait."""
_WARM_UP_RUNS = 200
_MAX_GROWTH_MIB = 4.0
"""What allocators may still take after warming up, however many the runs."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One kind of program.

    Attributes:
        name: For the report.
        code: Python.
        owed: How it must end.
        share: How often it comes in a round.
    """

    name: str
    code: str
    owed: RunStatus
    share: int


PROGRAMS = (
    Program(name="plain", code="print(int(input()) + 1)", owed=RunStatus.FINISHED, share=52),
    Program(name="raises", code="1 / 0", owed=RunStatus.FINISHED, share=6),
    Program(name="exits at once", code="import os; os._exit(3)", owed=RunStatus.FINISHED, share=4),
    Program(
        name="files",
        code="for i in range(40): open(str(i), 'w').write('x' * 1000)",
        owed=RunStatus.FINISHED,
        share=6,
    ),
    Program(
        name="tmpfs fill",
        code="f = open('x', 'wb', 0)\nwhile True: f.write(bytes(1 << 20))",
        owed=RunStatus.FINISHED,
        share=4,
    ),
    Program(
        name="a million files",
        code="for i in range(10**6): open(str(i), 'w').close()",
        owed=RunStatus.FINISHED,
        share=4,
    ),
    Program(
        name="threads",
        code="import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        owed=RunStatus.FINISHED,
        share=3,
    ),
    Program(name="forks", code="import os\nos.fork()", owed=RunStatus.FINISHED, share=3),
    Program(
        name="descriptors",
        code="import os\nwhile True: os.pipe()",
        owed=RunStatus.FINISHED,
        share=3,
    ),
    Program(name="memory", code="bytearray(8 << 30)", owed=RunStatus.MEMORY_LIMIT, share=4),
    Program(
        name="small allocations",
        code="x = []\nwhile True: x.append(bytes(1 << 16))",
        owed=RunStatus.MEMORY_LIMIT,
        share=2,
    ),
    Program(
        name="crash", code="import ctypes; ctypes.string_at(0)", owed=RunStatus.SIGNALED, share=4
    ),
    Program(
        name="endless output",
        code="while True: print('x' * 9999)",
        owed=RunStatus.OUTPUT_LIMIT,
        share=3,
    ),
    Program(name="busy loop", code="while True: pass", owed=RunStatus.TIME_LIMIT, share=1),
    Program(
        name="signals ignored",
        code="import signal\nfor s in set(signal.Signals) - {9, 19}:\n"
        "    signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        owed=RunStatus.TIME_LIMIT,
        share=1,
    ),
)

DAEMON = (
    "#include <unistd.h>\n#include <stdio.h>\n"
    'int main(){puts("done");fflush(stdout);if(!fork()){setsid();if(!fork())sleep(60);sleep(60);}}'
)
"""A compiled program that leaves two processes behind: one in fifty runs, if it compiles."""
_DAEMON_EVERY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What a process and its children hold.

    Attributes:
        processes: Below this process.
        descriptors: Of this process.
        mounts: That this process sees.
        cgroups: Of the sandbox's making, anywhere.
        temporary: Entries of the folder for temporary files.
        slot_mib: Resident memory of the slots' processes that is their own.
        own_mib: Resident memory of this process.
    """

    processes: int
    descriptors: int
    mounts: int
    cgroups: int
    temporary: int
    slot_mib: float
    own_mib: float


def traces() -> Traces:
    """Looks."""
    me = psutil.Process()
    children = me.children(recursive=True)
    home = find_home()
    parents = {folder.parent for folder in group_folders(home, 0)} if home is not None else set()
    return Traces(
        processes=len(children),
        descriptors=me.num_fds(),
        mounts=len(Path("/proc/self/mounts").read_text().splitlines()),
        cgroups=sum(len(list(folder.glob("rewardsvc-sandbox-*"))) for folder in parents),
        temporary=len(list(Path(tempfile.gettempdir()).iterdir())),
        slot_mib=sum(_private_bytes(child) for child in children) / _MIB,
        own_mib=me.memory_info().rss / _MIB,
    )


def _private_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def settle(sandbox: Sandbox, seconds: float = 5.0) -> Traces:
    """Looks once the number of processes no longer changes: the next children are being made."""
    deadline = time.monotonic() + seconds
    last = traces()
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = traces()
        if now.processes == last.processes:
            return now
        last = now
    return last


def rounds() -> Iterator[Program]:
    """Programs for ever, those of one round spread evenly over it."""
    spread = sorted(
        ((index + 0.5) / program.share, number, program)
        for number, program in enumerate(PROGRAMS)
        for index in range(program.share)
    )
    return itertools.cycle(program for _, _, program in spread)


def run_many(sandbox: Sandbox, num_runs: int) -> Counter[str]:
    """Runs programs on all slots.

    Returns:
        What ended otherwise than owed, by name and status.
    """
    compiled = None
    try:
        compiled = sandbox.compile("c", DAEMON)
    except ValueError:
        print("no C compiler: runs without daemons", file=sys.stderr)

    def one(number: int, program: Program) -> str:
        if compiled is not None and number % _DAEMON_EVERY == 0:
            result = sandbox.run_program(compiled, limits=SMALL)
            good = result.status is RunStatus.FINISHED and result.stdout == b"done\n"
            return "" if good else f"daemon: {result.status} {result.message}"
        result = sandbox.run("python", program.code, stdin=b"41\n", limits=SMALL)
        good = result.status is program.owed
        if program.name == "plain":
            good = good and result.stdout == b"42\n"
        return "" if good else f"{program.name}: {result.status} {result.message}"

    wrong: Counter[str] = Counter()
    lock = threading.Lock()
    # Not an executor's map: ten thousand queued futures are fourteen megabytes of this process,
    # which would hide a leak of the library's.
    programs = enumerate(itertools.islice(rounds(), num_runs))

    def work() -> None:
        while True:
            with lock:
                number, program = next(programs, (-1, None))
            if program is None:
                return
            problem = one(number, program)
            with lock:
                wrong[problem] += 1

    threads = [threading.Thread(target=work) for _ in range(sandbox.num_slots * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong.total() != num_runs:
        raise RuntimeError(f"{wrong.total()} of {num_runs} runs have an end")
    del wrong[""]
    return wrong


def soak(num_runs: int, num_slots: int | None = None) -> dict[str, object]:
    """Runs, looks and compares; see the module."""
    before_all = traces()
    with Sandbox(num_slots=num_slots) as sandbox:
        sandbox.start()
        wrong = run_many(sandbox, min(num_runs, _WARM_UP_RUNS))
        early, began = settle(sandbox), time.monotonic()
        wrong += run_many(sandbox, num_runs)
        took_s = time.monotonic() - began
        late = settle(sandbox)
    after_all = settle(sandbox)
    return {
        "num_runs": num_runs,
        "seconds": round(took_s, 1),
        "wrong_ends": dict(wrong),
        "most_processes": sandbox.num_slots * PROCESSES_PER_SLOT,
        "before": asdict(before_all),
        "warm": asdict(early),
        "after_runs": asdict(late),
        "closed": asdict(after_all),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the soak; the exit code says whether anything was left or ended wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="how many (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args(arguments)
    found = soak(options.runs)
    text = json.dumps({**surroundings(), **found}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return int(bool(leftovers(found)))


def leftovers(found: dict[str, object]) -> list[str]:
    """What is wrong in the result of `soak`; nothing if all is well."""
    problems = [f"{name} x{count}" for name, count in dict(found["wrong_ends"]).items()]  # type: ignore[call-overload]
    before, closed = dict(found["before"]), dict(found["closed"])  # type: ignore[call-overload]
    warm, late = dict(found["warm"]), dict(found["after_runs"])  # type: ignore[call-overload]
    for name in ("processes", "mounts", "cgroups"):
        if closed[name] > before[name]:
            problems.append(f"{name}: {before[name]} before, {closed[name]} after closing")
    if late["processes"] > int(str(found["most_processes"])):
        problems.append(f"processes: {late['processes']} after the runs")
    for name in ("descriptors", "mounts", "cgroups"):
        if late[name] > warm[name]:
            problems.append(f"{name}: {warm[name]} when warm, {late[name]} after the runs")
    for name in ("slot_mib", "own_mib"):
        if late[name] > warm[name] + _MAX_GROWTH_MIB:
            problems.append(f"{name}: {warm[name]:.1f} when warm, {late[name]:.1f} after the runs")
    return problems


if __name__ == "__main__":
    sys.exit(main())
