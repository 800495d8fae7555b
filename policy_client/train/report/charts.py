"""Draws the charts of the table for the runs there are."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rewardsvc.policy_client.train.report.specs import CHARTS, NOT_DRAWN, ChartSpec
from rewardsvc.policy_client.train.report.svg import Drawing, Line, line_chart, stacked_chart
from rewardsvc.policy_client.train.run_data import RunData


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart as the page shows it."""

    title: str
    words: str
    drawing: Drawing


def draw_charts(runs: Sequence[RunData]) -> list[Chart]:
    """The charts for which there are numbers. With several runs, one line a run and metric."""
    charts = []
    for spec in CHARTS:
        lines = [line for run in runs for line in _lines(spec, run, several=len(runs) > 1)]
        drawing = line_chart(
            lines, title=spec.title, from_zero=spec.from_zero, percent=spec.percent
        )
        if drawing is not None:
            charts.append(Chart(title=spec.title, words=spec.words, drawing=drawing))
    return charts


def draw_others(runs: Sequence[RunData]) -> list[Chart]:
    """One chart each for the metrics that no chart of ours names."""
    known = [name for spec in CHARTS for name in spec.metrics] + list(NOT_DRAWN)
    names = dict.fromkeys(
        name
        for run in runs
        for name in run.metrics
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in known)
    )
    charts = []
    for name in names:
        spec = ChartSpec(title=name, metrics=(fnmatch_literal(name),), words="")
        lines = [line for run in runs for line in _lines(spec, run, several=len(runs) > 1)]
        drawing = line_chart(lines, title=name)
        if drawing is not None:
            charts.append(Chart(title=name, words="", drawing=drawing))
    return charts


def draw_phases(run: RunData) -> Drawing | None:
    """Seconds a step, by what they were spent on."""
    return stacked_chart(
        [Line(label=name, steps=run.steps, values=run.phases[name]) for name in run.phases],
        title="Time per step",
    )


def fnmatch_literal(name: str) -> str:
    """A pattern that matches `name` and nothing else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lines(spec: ChartSpec, run: RunData, *, several: bool) -> list[Line]:
    found = []
    names = [name for pattern in spec.metrics for name in fnmatch.filter(run.metrics, pattern)]
    has_left = any(name not in spec.right for name in names)
    for name in names:
        label = spec.labels.get(
            name, name.removeprefix("rewards/").removeprefix("eval/").removesuffix("/mean")
        )
        on_the_right = has_left and name in spec.right
        if on_the_right:
            label += " (right axis)"
        low, high = (None, None) if several else _band(spec, run, name)
        # Evaluations are few: joined over the steps between them, these are no gaps.
        at = [
            i
            for i, value in enumerate(run.metrics[name])
            if not name.startswith("eval") or math.isfinite(value)
        ]
        found.append(
            Line(
                label=f"{run.directory.name}: {label}" if several else label,
                steps=[run.steps[i] for i in at],
                values=[run.metrics[name][i] for i in at],
                low=low,
                high=high,
                right=on_the_right,
                smooth=spec.smooth and not name.startswith("eval"),
            )
        )
    return found


def _band(
    spec: ChartSpec, run: RunData, name: str
) -> tuple[list[float] | None, list[float] | None]:
    edges = spec.bands.get(name)
    if edges is None or any(edge.lstrip("+-") not in run.metrics for edge in edges):
        return None, None

    def series(edge: str) -> list[float]:
        other = run.metrics[edge.lstrip("+-")]
        if edge[0] not in "+-":
            return list(other)
        sign = 1.0 if edge[0] == "+" else -1.0
        return [v + sign * o for v, o in zip(run.metrics[name], other, strict=True)]

    low, high = series(edges[0]), series(edges[1])
    return (low, high) if any(map(math.isfinite, low)) else (None, None)
