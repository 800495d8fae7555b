"""Timing for the benchmarks: warmed up, interleaved, medians with spread, and what it ran on."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "rewardsvc",
    "torch",
    "transformers",
    "triton",
    "grpcio",
    "protobuf",
    "numpy",
    "liger-kernel",
    "trl",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Seconds a call.

    Attributes:
        median_s: The median of the rounds.
        p20_s: A fifth of the rounds were faster.
        p80_s: A fifth of the rounds were slower.
        num_rounds: How many there were.
    """

    median_s: float
    p20_s: float
    p80_s: float
    num_rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Stats:
        """The statistics of some measurements; at least one."""
        ordered = sorted(seconds)

        def quantile(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(
            median_s=statistics.median(ordered),
            p20_s=quantile(0.2),
            p80_s=quantile(0.8),
            num_rounds=len(ordered),
        )


def interleave(
    cases: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, Stats]:
    """Times all cases in turn, round after round, so that noise of the machine meets all alike."""
    for _ in range(warmup):
        for work in cases.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, work in cases.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: Stats.of(values) for name, values in seconds.items()}


def surroundings() -> dict[str, Any]:
    """The machine, the versions and the commit that numbers belong to."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--json", type=Path, help="also write the rows to this file")
    found.add_argument("--quick", action="store_true", help="small and few, to see that it works")
    return found


def write_rows(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Writes rows and surroundings as JSON, if there is a path."""
    if path is not None:
        path.write_text(json.dumps({**surroundings(), "rows": rows}, indent=2) + "\n")


def row(name: str, stats: Stats, **more: Any) -> dict[str, Any]:
    """One row of a table."""
    return {"name": name, **asdict(stats), **more}
