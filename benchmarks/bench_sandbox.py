"""What isolation costs: warm sandboxed Python against a bare subprocess and bubblewrap.

Latency is of one program at a time and throughput of many on all slots, each interleaved with its
baselines. Also a suite of 100 function calls, and, with `--busy N`, the verdicts of programs on
either side of their limit while N processes keep the cores busy.
"""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import Stats, interleave, parser, row, write_rows

from rewardsvc.verifiers.code import CodeVerifier, FunctionTests
from rewardsvc.verifiers.sandbox import Limits, RunResult, RunStatus, Sandbox

CODE = "print(int(input()) + 1)"
INTERPRETER = str(Path(sys._base_executable).resolve())  # the one in the sandbox, not a shim
STDIN, STDOUT = b"41\n", b"42\n"
BARE = [INTERPRETER, "-I", "-S", "-E", "-c", CODE]
_LIMIT_MS = 300
_SHARES = {"a fifth": 0.2, "a half": 0.5, "four fifths": 0.8, "six fifths": 1.2, "five times": 5.0}
_BURN = "import time\nwhile time.process_time() < {seconds}: pass"
BUBBLEWRAP = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", *BARE]


def main() -> None:
    """Runs the benchmark."""
    arguments_parser = parser(__doc__.splitlines()[0])
    arguments_parser.add_argument("--busy", type=int, default=0, help="busy processes beside it")
    arguments = arguments_parser.parse_args()
    rounds, batch = (5, 16) if arguments.quick else (200, 400)
    rows: list[dict[str, Any]] = []
    with Sandbox() as sandbox, ThreadPoolExecutor(sandbox.num_slots * 2) as threads:
        sandbox.start()
        cases = _cases(sandbox)
        for name, stats in interleave(cases, rounds=rounds).items():
            rows.append(row(f"one at a time: {name}", stats))
        del cases["in the caller's own interpreter"]
        together = {name: _in_batches(case, threads, batch) for name, case in cases.items()}
        for name, stats in interleave(together, rounds=max(3, rounds // 20)).items():
            rate = batch / stats.median_s
            rows.append(row(f"{sandbox.num_slots} slots: {name}", stats, runs_per_second=rate))
        rows.append(row("suite of 100 function calls", _suite(sandbox, rounds)))
        if arguments.busy:
            repeats = 1 if arguments.quick else 6
            rows += _verdicts_under_load(sandbox, threads, arguments.busy, repeats)
    _show(rows)
    write_rows(arguments.json, rows)


def _cases(sandbox: Sandbox) -> dict[str, Callable[[], object]]:
    def warm() -> None:
        assert sandbox.run("python", CODE, stdin=STDIN).stdout == STDOUT

    def bare(command: list[str]) -> None:
        assert subprocess.run(command, input=STDIN, capture_output=True).stdout == STDOUT

    def trusted() -> None:
        said: list[object] = []
        names = {"input": lambda: STDIN.decode(), "print": said.append}
        exec(compile(CODE, "main.py", "exec"), names)
        assert said == [42]

    cases: dict[str, Callable[[], object]] = {
        "sandbox": warm,
        "subprocess": lambda: bare(BARE),
        "in the caller's own interpreter": trusted,
    }
    if shutil.which("bwrap"):
        cases["bubblewrap"] = lambda: bare(BUBBLEWRAP)
    return cases


def _in_batches(
    case: Callable[[], object], threads: ThreadPoolExecutor, size: int
) -> Callable[[], object]:
    return lambda: [f.result() for f in [threads.submit(case) for _ in range(size)]]


def _suite(sandbox: Sandbox, rounds: int) -> Stats:
    verifier = CodeVerifier(sandbox=sandbox, cache_entries=0)
    suite = FunctionTests("f", [((i, [i] * 3), i * 3 + 1) for i in range(100)])
    program = "def f(x, items): return sum(items) + 1"

    def judge() -> None:
        assert verifier.verify_program(program, suite).reward == 1.0

    return interleave({"suite": judge}, rounds=rounds)["suite"]


def _verdicts_under_load(
    sandbox: Sandbox, threads: ThreadPoolExecutor, num_busy: int, repeats: int
) -> list[dict[str, Any]]:
    """Runs programs on either side of their limits, alone and beside busy processes.

    Each row tells how many runs ended otherwise than the same program did alone.
    """
    limits = Limits(cpu_ms=_LIMIT_MS)
    jobs = [(name, share) for _ in range(repeats) for name, share in _SHARES.items()]

    def run(job: tuple[str, float]) -> RunResult:
        return sandbox.run("python", _BURN.format(seconds=job[1] * _LIMIT_MS / 1000), limits=limits)

    alone = {name: run((name, share)) for name, share in _SHARES.items()}
    with _busy(num_busy):
        beside = list(zip(jobs, threads.map(run, jobs), strict=True))
    rows = []
    for name, share in _SHARES.items():
        owed = RunStatus.FINISHED if share < 1 else RunStatus.TIME_LIMIT
        ended = [result for (kind, _), result in beside if kind == name]
        flipped = sum(result.status is not owed for result in (*ended, alone[name]))
        stats = Stats.of([result.wall_ms / 1000 for result in ended])
        title = f"{name} of its limit, beside {num_busy} busy processes"
        rows.append(row(title, stats, flipped_verdicts=flipped))
    return rows


def _spin() -> None:
    while True:
        pass


@contextmanager
def _busy(count: int) -> Iterator[None]:
    spinning = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in spinning:
        process.start()
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.join()


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("case", "median ms", "p20", "p80", "runs/s", "flipped")
    for one in rows:
        figures = (f"{one[key] * 1000:.2f}" for key in ("median_s", "p20_s", "p80_s"))
        rate = f"{one['runs_per_second']:.0f}" if "runs_per_second" in one else ""
        table.add_row(one["name"], *figures, rate, str(one.get("flipped_verdicts", "")))
    Console().print(table)


if __name__ == "__main__":
    main()
