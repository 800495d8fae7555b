"""The sandbox's endurance in small: the scripts that prove it at length are run for a moment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_nothing_is_left_after_some_hundred_runs_many_of_them_abusive(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    done = run_script("soak_sandbox.py", "--runs", "200", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["wrong_ends"] == {}
    assert found["warm"]["processes"] > 0
    assert found["closed"]["processes"] == found["before"]["processes"] == 0


def test_verdicts_do_not_change_beside_busy_processes(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = run_script("bench_sandbox.py", "--quick", "--busy", "3", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in json.loads(file.read_text())["rows"] if "flipped_verdicts" in row]
    assert len(rows) == 5
    assert [row["flipped_verdicts"] for row in rows] == [0] * 5


@pytest.mark.parametrize(
    "problem", ["processes", "mounts", "cgroups", "descriptors", "slot_mib", "own_mib"]
)
def test_soak_sees_what_is_left(problem: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from soak_sandbox import leftovers\n"
        "names = ('processes', 'mounts', 'cgroups', 'descriptors', 'slot_mib', 'own_mib')\n"
        "clean = dict.fromkeys(names, 3)\n"
        "found = {name: dict(clean) for name in ('before', 'warm', 'after_runs', 'closed')}\n"
        "found |= {'wrong_ends': {}, 'most_processes': 3}\n"
        "assert not leftovers(found)\n"
        "assert leftovers(found | {'wrong_ends': {'plain': 1}})\n"
        f"found['after_runs'][{problem!r}] += 5\n"
        "assert leftovers(found)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
