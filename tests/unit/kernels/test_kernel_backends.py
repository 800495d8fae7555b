"""Which backend serves a call, and what happens where there is no compiler."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from rewardsvc.kernels.dispatch import (
    BACKEND_VARIABLE,
    MIN_COMPILED_VOCAB,
    Backend,
    choose_backend,
)

NO_COMPILER = """
import warnings
import torch
from rewardsvc.kernels import selective_logprob

logits, ids = torch.randn(70, 9000), torch.randint(0, 9000, (70,))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    first = selective_logprob(logits, ids).logp
    selective_logprob(logits, ids)
ours = [str(w.message) for w in seen if "could not be compiled" in str(w.message)]
assert len(ours) == 1, [str(w.message) for w in seen]
assert "install a C++ compiler" in ours[0]
want = torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0]
torch.testing.assert_close(first, want, rtol=0, atol=1e-5)
"""


def test_the_backend_depends_on_the_vocabulary_and_never_on_the_rows(monkeypatch):
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    for num_rows in (0, 1, 4096):
        rows = torch.zeros(num_rows, 1)
        assert choose_backend(rows, MIN_COMPILED_VOCAB) is Backend.COMPILED
        assert choose_backend(rows, MIN_COMPILED_VOCAB - 1) is Backend.EAGER
        assert choose_backend(rows.double(), MIN_COMPILED_VOCAB) is Backend.EAGER


def test_the_environment_decides_unless_the_caller_does(monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "eager")
    rows = torch.zeros(1, 1)
    assert choose_backend(rows, MIN_COMPILED_VOCAB) is Backend.EAGER
    assert choose_backend(rows, MIN_COMPILED_VOCAB, "compiled") is Backend.COMPILED
    monkeypatch.setenv(BACKEND_VARIABLE, "fast")
    with pytest.raises(ValueError, match="backend is 'fast'"):
        choose_backend(rows, 1)


@pytest.mark.slow
def test_without_a_compiler_it_warns_once_and_goes_on(tmp_path):
    environment = {
        **os.environ,
        "CXX": "/nonexistent/c++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_importing_the_kernels_imports_no_triton_and_no_compiler():
    code = (
        "import sys, rewardsvc.kernels; "
        "assert not {'triton', 'torch._inductor.compile_fx'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
