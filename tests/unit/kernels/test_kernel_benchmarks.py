"""The kernel benchmarks run, at small shapes, and write what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def _rows(script, path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--quick", "--json", str(path)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=110,
    )
    return json.loads(path.read_text())["rows"]


@pytest.mark.slow
def test_cpu_benchmark_measures_every_case_against_the_product(tmp_path):
    rows = _rows("bench_kernels_cpu.py", tmp_path / "rows.json")
    assert {"bare product", "plain torch", "ours"} <= {row["name"] for row in rows}
    assert {(row["dtype"], row["backward"]) for row in rows} == {
        (dtype, backward) for dtype in ("float32", "bfloat16") for backward in (False, True)
    }
    assert all(row["of_product"] == 1 for row in rows if row["name"] == "bare product")
    assert all(row["gflops"] > 0 for row in rows)


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
