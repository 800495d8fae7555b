"""The benchmark against TRL runs small: both learn from the same completions, and agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_grpo_learns_the_same_as_trls_from_the_same_completions(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "out.json"
    script = BENCHMARKS / "bench_trl.py"
    command = [sys.executable, str(script), "--quick", "--threads", "1", "--only", "1"]

    done = subprocess.run(
        [*command, "--json", str(out)], capture_output=True, text=True, timeout=100, check=False
    )

    assert done.returncode == 0, done.stderr[-3000:]
    ours, trl = json.loads(out.read_text())["rows"]
    assert (ours["name"], trl["name"]) == ("ours", "trl")
    assert min(row["median_s"] for row in (ours, trl)) > 0
    agreed = {(pair["step"], pair["value"]): pair for pair in ours["agreed"]}
    assert len(agreed) == 3 * 4
    last = agreed[3, "kl"]
    assert last["ours"] > 0, "the policy has left the reference"
    assert last["ours"] == pytest.approx(last["trl"], rel=0.01)
