"""Backends to test, and comparisons that several files share.

Triton's interpreter is chosen when triton is imported, so its tests run in a process of their own:
`test_triton_interpreter.py` starts it on the files whose tests take `backend`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rewardsvc.kernels.linear import plan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend`: all that run here. `quick_backend`: without the one that takes seconds to compile.

    The compiled form is compiled from the eager one; what it could get wrong of its own is sums,
    tails and NaN, and the tests of those take `backend`.
    """
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", ["triton"] if INTERPRETED else ["eager", "compiled"])
    if "quick_backend" in metafunc.fixturenames:
        metafunc.parametrize("quick_backend", ["triton"] if INTERPRETED else ["eager"])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter a row costs a millisecond, padding rows included."""
    if INTERPRETED:
        small = replace(plan._CPU, min_rows=8, max_rows=8)
        monkeypatch.setattr(plan, "_CPU", small)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def allclose() -> Callable[..., None]:
    """Compares with the truth on the scale of the logits: tol * max(1, largest logit)."""

    def check(got: Tensor, truth: Tensor, tol: float, scale: float = 1.0) -> None:
        bound = tol * max(1.0, scale)
        torch.testing.assert_close(got.double(), truth.double(), rtol=0, atol=bound)

    return check


@pytest.fixture
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Relative error in the L2 norm."""

    def error(got: Tensor, truth: Tensor) -> float:
        distance = (got.double() - truth.double()).norm()
        return float((distance / truth.double().norm().clamp(min=1e-12)).detach())

    return error
