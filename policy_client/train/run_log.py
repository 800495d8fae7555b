"""What a run leaves behind while it runs: metrics, sample completions, TensorBoard, a progress bar.

Files in the run's folder, all of them append-only lines of JSON that survive a kill:

* `run.json`: algorithm, number of steps, configuration.
* `metrics.jsonl`: one line a step. Steps strictly increase: logging step s drops whatever an
  earlier life of the run had logged at s or later, so that no step is ever counted twice.
* `samples.jsonl`: completions to read, one line for each (step, tag).
* `tensorboard/`: the same numbers for TensorBoard, where it is installed.

Nothing here imports torch unless TensorBoard is there; the report reads runs without it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewardsvc.policy_client.train.run_data import (
    ALARMS_FILE,
    METRICS_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    RunData,
    SampleRow,
    read_lines,
    read_run,
)

__all__ = ["RunData", "RunLog", "SampleRow", "read_run"]

HEADLINE_METRICS = (
    "reward",
    "loss",
    "accuracy",
    "eval_accuracy",
    "eval/sampled_accuracy",
    "kl",
    "completions/mean_length",
)
"""Shown beside the progress bar, in this order, where a run has them."""


class RunLog:
    """Writes one run's log. Use it as a context manager, or call `close`.

    Example:
        >>> with RunLog(directory, algorithm="grpo", total_steps=200, config=config) as log:
        ...     log.rewind(start_step)  # after a resume
        ...     log.step(1, {"reward": 0.25}, phases={"generate": 0.3, "score": 0.1})
    """

    def __init__(
        self,
        directory: Path,
        *,
        algorithm: str,
        total_steps: int,
        config: Mapping[str, Any],
        tensorboard: bool = True,
    ) -> None:
        """Opens the log in `directory`, which is created; what an earlier life wrote is kept.

        Args:
            directory: The run's folder.
            algorithm: For instance "grpo".
            total_steps: Of the whole run, not of what is left of it.
            config: The configuration; values that JSON does not know are written as text.
            tensorboard: Whether to write TensorBoard files, if it is installed.
        """
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._algorithm = algorithm
        self._total_steps = total_steps
        self._logging_steps = max(1, int(config.get("logging_steps", 1) or 1))
        self._use_tensorboard = tensorboard
        self._writer: Any = None
        for name in (METRICS_FILE, SAMPLES_FILE, ALARMS_FILE):
            _end_last_line(self._directory / name)
        self._last_step = -1
        self._elapsed_before = 0.0
        self._opened_at = time.monotonic()
        self._read_progress()
        _write_atomically(
            self._directory / RUN_FILE,
            json.dumps(
                {
                    "algorithm": algorithm,
                    "total_steps": total_steps,
                    "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "config": dict(config),
                },
                default=str,
                indent=1,
            ),
        )
        console = Console(stderr=True)
        self._console = console
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}", markup=False),
                console=console,
            )
            self._task = self._progress.add_task(algorithm, total=total_steps, numbers="")
            self._progress.start()

    def step(
        self, step: int, metrics: Mapping[str, float], phases: Mapping[str, float] | None = None
    ) -> None:
        """Logs one step; drops what an earlier life of the run logged at `step` or later.

        Args:
            step: Steps done, from 1; 0 is the state before the first.
            metrics: Numbers by name. NaN stands for "there is none" and is written as null.
            phases: Seconds spent in each part of the step.
        """
        if step <= self._last_step:
            self.rewind(step - 1)
        self._last_step = step
        phases = phases or {}
        line = {
            "step": step,
            "elapsed_s": round(self._elapsed(), 4),
            "metrics": {name: _finite(value) for name, value in metrics.items()},
            "phases": {name: _finite(value) for name, value in phases.items()},
        }
        _append(self._directory / METRICS_FILE, line)
        self._write_tensorboard(step, metrics, phases)
        self._show(step, metrics)

    def samples(self, step: int, tag: str, rows: Sequence[SampleRow]) -> None:
        """Logs completions; a later call with the same step and tag replaces them.

        Args:
            step: Steps done when they were written.
            tag: What they are, for instance "before", "after", "train", "eval".
            rows: Prompts in the same order at every step let the report pair them.
        """
        line = {"step": step, "tag": tag, "rows": [_row_to_json(row) for row in rows]}
        _append(self._directory / SAMPLES_FILE, line)

    def rewind(self, step: int) -> None:
        """Drops everything logged after `step`; -1 drops everything.

        Call it after loading a checkpoint of `step`. A last line that a kill tore is dropped too.
        """
        for name in (METRICS_FILE, SAMPLES_FILE, ALARMS_FILE):
            path = self._directory / name
            if path.exists():
                kept = [line for line in read_lines(path) if line["step"] <= step]
                _write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._close_writer()
        self._read_progress()
        if self._progress is not None:
            self._progress.update(self._task, completed=max(0, step))

    def close(self) -> None:
        """Ends the progress bar and flushes TensorBoard. May be called twice."""
        self._close_writer()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_progress(self) -> None:
        """Where the log stands: time goes on from its last line, downtime is not counted."""
        lines = read_lines(self._directory / METRICS_FILE)
        self._last_step = lines[-1]["step"] if lines else -1
        self._elapsed_before = float(lines[-1].get("elapsed_s") or 0.0) if lines else 0.0
        self._opened_at = time.monotonic()

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._opened_at

    def _write_tensorboard(
        self, step: int, metrics: Mapping[str, float], phases: Mapping[str, float]
    ) -> None:
        if not self._use_tensorboard:
            return
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._use_tensorboard = False
                return
            # purge_step hides what an earlier life of the run wrote from this step on.
            self._writer = SummaryWriter(str(self._directory / "tensorboard"), purge_step=step)
        numbers = {**metrics, **{f"phases/{name}": value for name, value in phases.items()}}
        for name, value in numbers.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _show(self, step: int, metrics: Mapping[str, float]) -> None:
        numbers = "  ".join(
            f"{name} {metrics[name]:.4g}" for name in HEADLINE_METRICS if name in metrics
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, numbers=numbers)
        elif step % self._logging_steps == 0 or step == self._total_steps:
            self._console.print(
                f"{self._algorithm} {step}/{self._total_steps}  {numbers}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


class _NoLog(RunLog):
    """Writes nothing: of several processes only the first one writes."""

    def __init__(self) -> None:
        pass

    def step(
        self, step: int, metrics: Mapping[str, float], phases: Mapping[str, float] | None = None
    ) -> None:
        pass

    def samples(self, step: int, tag: str, rows: Sequence[SampleRow]) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def open_log(
    directory: Path | None, *, algorithm: str, total_steps: int, config: Mapping[str, Any]
) -> RunLog:
    """A `RunLog`; without a directory one that writes nothing."""
    if directory is None:
        return _NoLog()
    return RunLog(directory, algorithm=algorithm, total_steps=total_steps, config=config)


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    value = float(value)
    return value if math.isfinite(value) else None


def _row_to_json(row: SampleRow) -> dict[str, Any]:
    parts = {name: _finite(value) for name, value in row.components.items()}
    reward = None if row.reward is None else _finite(row.reward)
    return {**asdict(row), "components": parts, "reward": reward}


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _end_last_line(path: Path) -> None:
    """Ends a torn last line, so that the next one does not become part of it."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
