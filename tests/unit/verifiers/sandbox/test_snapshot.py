"""Memory that was moved into a file holds what it held, and no child changes it for another."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from rewardsvc.verifiers.sandbox import Sandbox
from rewardsvc.verifiers.sandbox.snapshot import Region, Stretch, _stretches, written_pages

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="chains are for x86-64")

SCRIPT = """
import ctypes, decimal, json, os, sys, zlib
from rewardsvc.verifiers.sandbox import snapshot
from rewardsvc.verifiers.sandbox.chain import Chain
from rewardsvc.verifiers.sandbox.snapshot import Region

def anonymous_kib():
    with open("/proc/self/smaps") as file:
        rows = [line.split() for line in file]
    total, counts = 0, False
    for head, *rest in rows:
        if not head.endswith(":"):
            counts = rest[0] in ("rw-p", "r--p") and rest[-1] != "[stack]"
        elif counts and head == "Anonymous:":
            total += int(rest[0])
    return total

blob = bytearray(os.urandom(5 << 20))
checksum = zlib.crc32(blob)
chain = Chain(max_rows=2048)
proc = os.open("/proc", os.O_PATH)
regions = snapshot.private_memory(proc, chain)
own = [r for r in regions if r.start < chain.end and chain.start < r.end]
open_before = set(os.listdir("/proc/self/fd"))
if sys.argv[1] == "hole":  # as if something had been unmapped since: nothing can be read there
    regions.insert(len(regions) // 2, Region(1 << 30, (1 << 30) + 4096, True))
num_rows = snapshot.num_rows(regions)
snapshot.add_move(chain, regions)
exact = num_rows >= chain.num_rows
before = anonymous_kib()
chain.run()
after = anonymous_kib()
same = zlib.crc32(blob) == checksum

def child():
    for index in range(0, len(blob), 4096):
        blob[index] ^= 255
    os._exit(0 if zlib.crc32(blob) != checksum else 1)

pid = os.fork()
if pid == 0:
    child()
status = os.waitpid(pid, 0)[1]
print(json.dumps({
    "own": own,
    "exact": exact,
    "before": before,
    "after": after,
    "same": same,
    "status": status,
    "same_after_child": zlib.crc32(blob) == checksum,
    "new_fds": len(set(os.listdir("/proc/self/fd")) - open_before),
    "files": sum("memfd:image" in line for line in open("/proc/self/maps")),
    "reserved": sum("---p" in line for line in open("/proc/self/maps")),
    "value": str(decimal.Decimal(1) / 7),
    "grown": len([str(number) for number in range(300_000)]),
}))
"""


def run(case: str) -> dict[str, Any]:
    command = [sys.executable, "-c", SCRIPT, case]
    found: dict[str, Any] = json.loads(subprocess.check_output(command, timeout=60))
    assert found["same"]
    assert found["same_after_child"]
    assert found["status"] == 0
    assert found["own"] == []
    assert found["exact"]
    assert found["new_fds"] == 0
    assert found["value"].startswith("0.142857")
    return found


def test_memory_is_a_file_and_holds_what_it_held() -> None:
    found = run("plain")
    assert found["files"] > 0
    # What is left was written to since, by this interpreter and by its measuring.
    assert found["after"] < found["before"] / 4


def test_where_something_cannot_be_read_all_stays_as_it_was() -> None:
    found = run("hole")
    assert found["files"] == 0
    assert found["after"] >= found["before"] * 0.9


def test_written_pages_are_those_of_the_process_alone() -> None:
    present, of_file, once = 1 << 63, 1 << 61, 1 << 56
    entries = [present | once, present | once | of_file, present, 0, present | once, present | once]
    regions = [Region(0x1000, 0x3000, True), Region(0x8000, 0xC000, True)]
    found = written_pages(b"".join(e.to_bytes(8, sys.byteorder) for e in entries), regions)
    assert found == [Stretch(0x1000, 0x1000), Stretch(0xA000, 0x2000)]


def test_stretches_join_neighbours() -> None:
    assert list(_stretches([])) == []
    assert list(_stretches([0])) == [Stretch(0, 4096)]
    assert list(_stretches([1, 2, 3, 7])) == [Stretch(4096, 3 * 4096), Stretch(7 * 4096, 4096)]


@pytest.fixture(scope="module", params=[True, False], ids=["snapshot", "fork"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(num_slots=1, snapshots=request.param) as made:
        yield made


SCRIBBLE = """
import ctypes, sys
ctypes.memset(id(7) + 24, 8, 1)
ctypes.memset(id(len), 0, 8)
sys.modules.clear()
print(int("7"), flush=True)
"""


def test_memory_that_a_run_scribbles_over_is_whole_for_the_next(sandbox: Sandbox) -> None:
    for _ in range(4):  # those that wait already, and those forked later
        first = sandbox.run("python", SCRIBBLE)
        assert first.stdout == b"8\n", first
        second = sandbox.run("python", "import sys\nprint(int('7'), len(sys.modules) > 40)")
        assert second.stdout == b"7 True\n", second


def test_runs_start_with_different_random_numbers(sandbox: Sandbox) -> None:
    code = "import random\nprint(random.random())"
    drawn = {sandbox.run("python", code).stdout for _ in range(5)}
    assert len(drawn) == 5


REHEARSAL = """
import gc, json, os
from rewardsvc.verifiers.sandbox import rehearsal, snapshot
from rewardsvc.verifiers.sandbox.chain import Chain
from rewardsvc.verifiers.sandbox.jail import JailPlan

plan = JailPlan(
    kind="python", layers=frozenset(), readable=(), ruleset=-1, uid=-1, base_bytes=0,
    grouped=False, limited=False,
)
rehearsal.warm_up()
gc.freeze()
proc = os.open("/proc", os.O_PATH)
regions = snapshot.private_memory(proc, Chain(max_rows=16))
open_before = sorted(os.listdir("/proc/self/fd"))
found = rehearsal.written(plan, regions, proc, lambda: None)
os.write(2, json.dumps({
    "pages": sum(one.length for one in found) // 4096,
    "of": sum(one.end - one.start for one in regions) // 4096,
    "within": all(
        any(r.writable and r.start <= page < r.end for r in regions)
        for one in found
        for page in range(one.start, one.start + one.length, 4096)
    ),
    "leaked": sorted(os.listdir("/proc/self/fd")) != open_before,
    "children": os.path.exists(f"/proc/self/task/{os.getpid()}/children")
    and open(f"/proc/self/task/{os.getpid()}/children").read(),
}).encode())
"""


def test_rehearsal_tells_what_a_run_writes_to_and_leaves_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REHEARSAL], capture_output=True, timeout=60, check=True
    )
    found = json.loads(done.stderr)
    assert 50 < found["pages"] < found["of"] / 2, found
    assert found["within"]
    assert not found["leaked"]
    assert not found["children"]
