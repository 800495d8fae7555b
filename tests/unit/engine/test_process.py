"""What a serving process sets for itself, tried in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from rewardsvc.engine.process import SWITCH_INTERVAL_S, tune_process
before = sys.getswitchinterval()
found = tune_process()
assert before > sys.getswitchinterval()
assert abs(sys.getswitchinterval() - SWITCH_INTERVAL_S) < 1e-6
print(found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is set with glibc only")
@pytest.mark.parametrize(("told", "expected"), [({}, "True"), ({"MALLOC_ARENA_MAX": "4"}, "False")])
def test_memory_is_set_unless_the_environment_says_something(
    told: dict[str, str], expected: str
) -> None:
    hidden = ("MALLOC_", "LD_PRELOAD")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)} | told
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected
