"""The overload benchmark in small: every answer right or a clear status, and nobody starves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overload.py"
SECONDS = 12


@pytest.mark.slow
def test_everything_at_once_gets_right_answers_or_clear_statuses(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seconds", str(SECONDS), "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert file.exists(), done.stderr[-3000:]
    report = json.loads(file.read_text())
    assert report["failures"] == []
    assert report["wrong"] == 0
    assert report["answered_calls"] > 64
    assert report["other_statuses"]["RESOURCE_EXHAUSTED"] > 0, "it was no overload"
