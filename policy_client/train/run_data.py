"""A run as its files tell it: what the log writes and the report reads. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
ALARMS_FILE = "alarms.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One completion worth reading.

    Attributes:
        prompt: As the model saw it.
        completion: What it wrote.
        answer: The reference answer, if there is one.
        reward: None where there was no reward.
        components: The named parts of the reward.
    """

    prompt: str
    completion: str
    answer: str | None = None
    reward: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleGroup:
    """Completions logged together.

    Attributes:
        step: Steps done when they were written.
        tag: What they are.
        rows: The completions.
    """

    step: int
    tag: str
    rows: tuple[SampleRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """A run as its files tell it. All series have the length of `steps`.

    Attributes:
        directory: The run's folder.
        algorithm: Empty if the run never started.
        total_steps: As planned; `steps` may end earlier.
        config: The configuration.
        steps: Steps logged, increasing.
        elapsed_s: Seconds of training at each step, without downtime.
        metrics: Series by name; NaN where a step has no such number.
        phases: Seconds by name of phase; NaN likewise.
        samples: In order of time.
        summary: Contents of `summary.json`; empty if there is none.
        alarms: What the monitor had to say, in order of time; each has `step` and `text`.
    """

    directory: Path
    algorithm: str
    total_steps: int
    config: Mapping[str, Any]
    steps: tuple[int, ...]
    elapsed_s: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    phases: Mapping[str, tuple[float, ...]]
    samples: tuple[SampleGroup, ...]
    summary: Mapping[str, Any]
    alarms: tuple[Mapping[str, Any], ...] = ()


def read_run(directory: Path) -> RunData:
    """Reads a run's folder: a finished run, one that was killed, one that goes on, or an empty one.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"run: {directory} is not a folder; give a trainer's output_dir")
    run = _read_object(directory / RUN_FILE)
    lines: dict[int, dict[str, Any]] = {}
    for line in read_lines(directory / METRICS_FILE):
        lines[line["step"]] = line
    ordered = [lines[step] for step in sorted(lines)]
    groups: dict[tuple[int, str], SampleGroup] = {}
    for line in read_lines(directory / SAMPLES_FILE):
        rows = tuple(_row_from_json(row) for row in line.get("rows", ()))
        group = SampleGroup(step=line["step"], tag=str(line.get("tag", "")), rows=rows)
        groups[group.step, group.tag] = group
    return RunData(
        directory=directory,
        algorithm=str(run.get("algorithm", "")),
        total_steps=int(run.get("total_steps", 0)),
        config=run.get("config") or {},
        steps=tuple(line["step"] for line in ordered),
        elapsed_s=tuple(_number(line.get("elapsed_s")) for line in ordered),
        metrics=_columns(ordered, "metrics"),
        phases=_columns(ordered, "phases"),
        samples=tuple(groups[key] for key in sorted(groups)),
        summary=_read_object(directory / SUMMARY_FILE),
        alarms=tuple(read_lines(directory / ALARMS_FILE)),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; a kill in the middle of a write leaves one that is not."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines


def _columns(lines: Sequence[Mapping[str, Any]], part: str) -> dict[str, tuple[float, ...]]:
    names = dict.fromkeys(name for line in lines for name in line.get(part) or {})
    return {
        name: tuple(_number((line.get(part) or {}).get(name)) for line in lines) for name in names
    }


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _row_from_json(row: Mapping[str, Any]) -> SampleRow:
    reward, answer = row.get("reward"), row.get("answer")
    return SampleRow(
        prompt=str(row.get("prompt", "")),
        completion=str(row.get("completion", "")),
        answer=None if answer is None else str(answer),
        reward=None if reward is None else float(reward),
        components={name: _number(part) for name, part in (row.get("components") or {}).items()},
    )


def _read_object(path: Path) -> dict[str, Any]:
    with suppress(OSError, json.JSONDecodeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}
