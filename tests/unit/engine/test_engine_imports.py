"""Checking a configuration needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = (
    "rewardsvc.engine.host",
    "rewardsvc.scorers.orm",
    "rewardsvc.scorers.prm",
    "rewardsvc.scorers.causal_lm",
)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_neither_torch_nor_transformers(module: str) -> None:
    script = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
