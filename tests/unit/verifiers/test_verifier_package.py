"""`import rewardsvc.verifiers` is light, and every name in its table exists."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rewardsvc.verifiers as verifiers


@pytest.mark.parametrize("name", verifiers.__all__)
def test_every_exported_name_resolves(name: str) -> None:
    assert getattr(verifiers, name).__name__ == name
    assert name in dir(verifiers)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchVerifier"):
        _ = verifiers.NoSuchVerifier


def test_importing_the_verifiers_imports_nothing_heavy() -> None:
    script = (
        "import sys, rewardsvc.verifiers as v; v.MathVerifier(); v.Countdown(); v.Format;"
        "heavy = {'sympy', 'torch', 'numpy', 'math_verify', 'grpc', 'pydantic', 'antlr4'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
