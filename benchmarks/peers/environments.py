"""An environment of its own for each peer: their pins contradict ours, and each other.

Each is a venv. Torch, which is large and of a build that the index may not have, is not installed
again: links and a `host.pth` show the one of the environment that runs this.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

INSTALL_TIMEOUT_S = 900.0
READY_FILE = "ready"

TORCH = ("torch", "torchgen", "functorch", "torch-*.dist-info")
"""What makes up torch in the environment that runs this. pip finds it there and installs what it
depends on, which is small."""

REPAIRS: dict[str, tuple[str, str]] = {
    "nvidia-pytriton": (
        "pytriton/proxy/data.py",
        """

# Added by rewardsvc's benchmarks: the Python inside Triton may be older than the standard library
# that it finds, which then asks a lock for a method that it does not have.
import multiprocessing.resource_tracker as _tracker
import threading as _threading

if not hasattr(_threading.RLock(), "_recursion_count"):
    _tracker._resource_tracker._lock = _threading._PyRLock()
""",
    ),
}
"""Package → a file of it, and what is added at its end so that it starts at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A peer's environment, or why there is none.

    Attributes:
        python: Its interpreter; None if it could not be made.
        version: Of the peer's package.
        problem: Why there is none.
    """

    python: Path | None
    version: str = ""
    problem: str = ""


def environment(folder: Path, requirements: list[str]) -> Environment:
    """Makes the environment, or takes the one that is there.

    Args:
        folder: Where it is kept.
        requirements: What pip installs; the first is the peer.
    """
    python = folder / "bin" / "python"
    if not (folder / READY_FILE).is_file():
        problem = _install(folder, python, requirements)
        if problem:
            return Environment(python=None, problem=problem)
        _repair(folder, requirements[0])
        (folder / READY_FILE).touch()
    name = requirements[0].partition("[")[0]
    code = f"from importlib.metadata import version; print(version({name!r}))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return Environment(python=python, version=found.stdout.strip())


def _install(folder: Path, python: Path, requirements: list[str]) -> str:
    """Why it failed; empty if it did not."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        # pip must not replace torch, which is another build than the index has.
        constraints.write(f"torch=={version('torch').partition('+')[0]}\n")
        constraints.flush()
        install = [str(python), "-m", "pip", "install", "-q", "-c", constraints.name]
        steps: list[list[str]] = [
            [sys.executable, "-m", "venv", str(folder)],
            [*install, "torch", *requirements],
        ]
        for number, step in enumerate(steps):
            try:
                done = subprocess.run(
                    step, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
                )
            except subprocess.TimeoutExpired:
                return f"installing took more than {INSTALL_TIMEOUT_S:g} s"
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
                return (lines or done.stderr.strip().splitlines() or ["pip failed"])[0][:300]
            if number == 0:
                _show_torch(folder)
    return ""


def _repair(folder: Path, package: str) -> None:
    if package in REPAIRS:
        name, text = REPAIRS[package]
        (file,) = folder.glob(f"lib/python*/site-packages/{name}")
        file.write_text(file.read_text() + text)


def _show_torch(folder: Path) -> None:
    (packages,) = folder.glob("lib/python*/site-packages")
    shown = folder / "torch-of-the-host"
    shown.mkdir(exist_ok=True)
    for pattern in TORCH:
        for source in Path(sysconfig.get_path("purelib")).glob(pattern):
            (shown / source.name).symlink_to(source)
    (packages / "host.pth").write_text(f"{shown}\n")
