"""The kernel benchmarks run, at small shapes, and write what they print."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def _rows(script, path, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--quick", "--json", str(path), *more],
        env=environment,
        check=True,
        capture_output=True,
        timeout=110,
    )
    return json.loads(path.read_text())["rows"]


@pytest.mark.slow
def test_cpu_benchmark_measures_every_case_against_the_product(tmp_path):
    path = tmp_path / "rows.json"
    rows = _rows("bench_kernels_cpu.py", path)
    assert {"bare product", "plain torch", "ours"} <= {row["name"] for row in rows}
    assert {(row["dtype"], row["backward"]) for row in rows} == {
        (dtype, backward) for dtype in ("float32", "bfloat16") for backward in (False, True)
    }
    assert all(row["of_product"] == 1 for row in rows if row["name"] == "bare product")
    assert all(row["gflops"] > 0 for row in rows)
    section = ("--section", "bfloat16-forward")
    again = _rows("bench_kernels_cpu.py", path, *section, "--peaks")
    measured = [row for row in again if row["peak_mib"] is not None]
    assert [(row["name"], row["dtype"], row["backward"]) for row in measured] == [
        ("ours", "bfloat16", False)
    ]
    later = _rows("bench_kernels_cpu.py", path, *section)
    assert len(later) == len(rows)
    assert [row["peak_mib"] for row in later] == [row["peak_mib"] for row in again]


@pytest.mark.slow
def test_gpu_benchmark_resumes_row_by_row(tmp_path):
    path = tmp_path / "rows.json"
    rows = _rows("bench_kernels_gpu.py", path)
    assert not [row for row in rows if "error" in row]
    document = json.loads(path.read_text())
    dropped = document["rows"].pop()
    path.write_text(json.dumps(document))
    again = _rows("bench_kernels_gpu.py", path)
    assert again[:-1] == rows[:-1]
    assert again[-1]["name"] == dropped["name"]
    # Small shapes prove nothing about the large ones.
    assert {target["met"] for target in document["targets"]} == {None}


def test_gpu_targets_are_judged_by_rate_or_by_time(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    bench = importlib.import_module("bench_kernels_gpu")
    name = f"linear forward and backward {bench.LINEAR}"
    rows = {
        "gae 16384x4096": {"of_roofline": 0.74, "median_ms": 1.0},
        "selective 8192x151936": {"of_roofline": 0.91, "median_ms": 1.0},
        name: {"of_roofline": 0.7, "median_ms": 60.0},
        f"three products {bench.LINEAR}": {"median_ms": 42.0},
        f"liger forward and backward {bench.LINEAR}": {"error": "RuntimeError: no driver"},
    }
    found = {(t["row"], t["bound"]): t["met"] for t in bench.judge(rows)}
    assert found["gae 16384x4096", 0.75] is False
    assert found["selective 8192x151936", 0.90] is True
    assert found[name, 1.45] is True
    assert found[name, 0.35] is None
