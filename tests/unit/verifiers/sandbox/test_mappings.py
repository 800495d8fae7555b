"""What is done to an interpreter's mappings leaves it working, and nothing writable that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

SCRIPT = """
import ctypes, decimal, json, sys, zlib
from rewardsvc.verifiers.sandbox import mappings

class Refusing:
    # The C library of a kernel that refuses one thing.
    def __init__(self, name):
        self.library = real(name)
    def __getattr__(self, name):
        if name != sys.argv[1]:
            return getattr(self.library, name)
        return lambda *arguments: mappings._MAP_FAILED

real, ctypes.CDLL = ctypes.CDLL, Refusing
own = ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value

def layout():
    (code,) = [row for row in mappings._mappings() if row.start <= own < row.end]
    return code, sum(row.end - row.start for row in mappings._mappings() if "x" in row.access)

mappings.join_mappings()
code, num_executable = layout()
content = zlib.crc32(ctypes.string_at(code.start, code.end - code.start))
num_rows = len(list(mappings._mappings()))
mappings.enlarge_code_pages()
with open("/proc/self/smaps") as file:
    rows = [line.split() for line in file]
huge_kib, within = 0, False
for head, *rest in rows:
    if not head.endswith(":"):
        start, end = (int(part, 16) for part in head.split("-"))
        within = rest[0] == "r-xp" and code.start <= start and end <= code.end
    elif within and head == "AnonHugePages:":
        huge_kib += int(rest[0])
print(json.dumps({
    "same": zlib.crc32(ctypes.string_at(code.start, code.end - code.start)) == content,
    "grown": layout()[1] - num_executable,
    "more_rows": len(list(mappings._mappings())) - num_rows,
    "huge_kib": huge_kib,
    "code_kib": (code.end - code.start) // 1024,
    "writable": [row for row in mappings._mappings() if {"w", "x"} <= set(row.access)],
    "value": str(decimal.Decimal(1) / 7),
}))
"""


def run(refused: str = "") -> dict[str, Any]:
    command = [sys.executable, "-c", SCRIPT, refused]
    found: dict[str, Any] = json.loads(subprocess.check_output(command, timeout=60))
    assert found["same"]
    assert found["grown"] == 0
    assert found["writable"] == []
    assert found["value"].startswith("0.142857")
    return found


def test_code_is_where_it_was_and_in_huge_pages() -> None:
    found = run()
    offered = os.uname().machine == "x86_64" and "[never]" not in OFFERED.read_text()
    if not offered:
        assert found["huge_kib"] == 0
    elif found["code_kib"] >= 4096:  # so that two MiB of it are aligned, wherever it lies
        # The kernel may have none left, which is its business: then the pages are small.
        assert found["huge_kib"] in range(0, found["code_kib"] + 1, 2048)


@pytest.mark.parametrize("refused", ["mmap", "mprotect", "mremap"])
def test_where_the_kernel_refuses_all_stays_as_it_was(refused: str) -> None:
    found = run(refused)
    assert found["huge_kib"] == 0
    assert found["more_rows"] <= 1  # of the heap, at most
