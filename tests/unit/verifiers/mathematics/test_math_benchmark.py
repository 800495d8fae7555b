"""The benchmark of the mathematics verifier runs, and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[4] / "benchmarks" / "bench_math.py"


@pytest.mark.slow
def test_benchmark_measures_both_sides_on_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json", str(path)],
        check=True,
        capture_output=True,
        timeout=110,
    )
    rows = json.loads(path.read_text())["rows"]
    ordinary = [row for row in rows if row["name"].startswith("ordinary")]
    assert len(ordinary) == 5
    for row in ordinary:
        assert row["num_without_algebra_system"] == row["num_pairs"]
        assert row["baseline_median_s"] > 0
    hostile = [row for row in rows if row["name"].startswith("hostile")]
    assert {row["status"] for row in hostile} <= {"time_limit", "wrong_answer", "memory_limit"}
