"""Runs the kernel tests on Triton's interpreter, in a process of their own.

The interpreter is chosen when triton is imported, and this process may have imported it already.
The files are the same that run here on plain torch: in the other process, `backend` is Triton.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
FILES = {
    "test_selective_logprob.py": 40,
    "test_linear_logprob.py": 20,
    "interpreted_fused_kernel.py": 5,
    "test_policy_loss_kernel.py": 40,
    "test_scans.py": 10,
}
"""File → the fewest tests that must have passed: a run that collects nothing must fail."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FILES)
def test_kernels_pass_on_the_interpreter(name, tmp_path):
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", str(HERE / name), "-q", f"--junitxml={report}"]
    # Triton 3.6's interpreter does what numpy has deprecated; no kernel can mend that.
    command += ["-W", "ignore:Conversion of an array with ndim:DeprecationWarning"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        env=environment,
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    assert suite.get("skipped") == "0"
    assert int(suite.get("tests", "0")) >= FILES[name]
