"""The command that starts a small process of the sandbox in an interpreter of its own.

It is exec'd, never forked: a fork would carry the caller's memory, expected answers included, into
the jail, and would cost what the caller's memory costs. It imports nothing beyond the sandbox.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rewardsvc
from rewardsvc.verifiers.sandbox.rootfs import WORK_DIR

# Not resolved: `rewardsvc/verifiers` may be a link to a folder that has no `rewardsvc` above it.
_ROOT = Path(rewardsvc.__file__).absolute().parents[1]

_START = """
import sys
sys.path.insert(0, {root!r})
from importlib import import_module
import_module("rewardsvc.verifiers.sandbox.atfork")
main = import_module("rewardsvc.verifiers.sandbox.{module}").main
sys.path.remove({root!r})
main(*sys.argv[1:])
"""

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": WORK_DIR,
    "TMPDIR": WORK_DIR,
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    # The order of sets must not differ from run to run, or verdicts would.
    "PYTHONHASHSEED": "0",
    # Each thread's arena would reserve more address space than a run may have.
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""All that a jailed process finds in its environment."""


# The dynamic loader binds functions at their first call; each child would bind the same ones anew.
START_ENVIRONMENT = {**ENVIRONMENT, "LD_BIND_NOW": "1"}
"""Environment of a slot's first process, which takes the addition away before programs see it."""


def command(module: str, *args: str) -> list[str]:
    """Runs `main(*args)` of a module of this package.

    `-I` would do but for the hash seed, which it ignores: `-s -S -P` and an environment of our own
    come to the same.
    """
    executable = getattr(sys, "_base_executable", sys.executable)
    start = _START.format(root=str(_ROOT), module=module)
    return [str(Path(executable).resolve()), "-s", "-S", "-P", "-B", "-c", start, *args]
