"""The benchmark of packing runs small, and all its ways compute the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_engine.py"


def test_packing_benchmark_compares_all_ways_on_the_same_samples(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(out)]
    command += ["--cases", "groups-prm", "singles-bert"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())["rows"]
    ways = {(row["case"], row["name"]): row for row in rows}
    assert len(ways) == 9
    assert ways["groups-prm", "packed, as served"]["shared_tokens"] < 16 * (256 + 200)
    assert all(row["largest_difference"] < 1e-4 for row in rows)
