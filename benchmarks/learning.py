"""What the benchmarks of learning have in common: rows that are kept, curves, and their picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import timing

SEEDS = (0, 1, 2)
PANEL_WIDTH, PANEL_HEIGHT, PANELS_ACROSS = 190, 120, 4
NUM_LINE_STYLES = 3


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are done."""
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def thinned(values: Sequence[float], points: int) -> list[float]:
    """Means over `points` equal parts."""
    parts = min(points, len(values))
    edges = [len(values) * i // parts for i in range(parts + 1)]
    return [round(statistics.fmean(values[a:b]), 4) for a, b in pairwise(edges)]


def panels(
    curves: Mapping[str, Sequence[tuple[int, Sequence[float]]]], *, steps: Mapping[str, int]
) -> str:
    """Small multiples as SVG, readable on light and dark: a panel a name, a line a seed.

    Args:
        curves: Name → seeds with their shares, in [0, 1], evenly spaced over the run.
        steps: Of a run of each name, for the label of its axis.
    """
    across = min(PANELS_ACROSS, len(curves))
    down = -(-len(curves) // across)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PANEL_WIDTH * across} '
        f'{PANEL_HEIGHT * down}" font-family="sans-serif" font-size="10">',
        "<style>text{fill:#57606a}path{fill:none;stroke-width:1.4}"
        ".s0{stroke:#0969da}.s1{stroke:#bf8700}.s2{stroke:#1a7f37}"
        ".axis{stroke:#8c959f;stroke-width:.6}</style>",
    ]
    for number, (name, lines) in enumerate(curves.items()):
        left = PANEL_WIDTH * (number % across) + 26
        top = PANEL_HEIGHT * (number // across) + 18
        width, height = PANEL_WIDTH - 36, PANEL_HEIGHT - 34
        parts.append(f'<text x="{left}" y="{top - 5}">{name}</text>')
        parts.append(f'<path class="axis" d="M{left} {top}v{height}h{width}"/>')
        for share in (0, 0.5, 1):
            y = top + height * (1 - share)
            parts.append(f'<text x="{left - 3}" y="{y + 3}" text-anchor="end">{share:g}</text>')
        parts.append(f'<text x="{left + width}" y="{top + height + 11}" text-anchor="end">')
        parts.append(f"{steps[name]} steps</text>")
        for seed, values in lines:
            last = max(len(values) - 1, 1)
            points = [
                f"{left + width * i / last:.1f} {top + height * (1 - value):.1f}"
                for i, value in enumerate(values)
            ]
            parts.append(f'<path class="s{seed % NUM_LINE_STYLES}" d="M{"L".join(points)}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A table of training runs, a row for each name and seed, and how it is made.

    Attributes:
        kind: The column that names a row: what is compared.
        names: Its values, in order.
        scores: The columns of what a row scored before training and after.
        run_row: Trains one: `run_row(name, seed, folder, quick=…)`.
        table: The rows as text.
        figure: Their curves as SVG.
        results: Where the rows are kept.
        picture: What the curves may be called.
        folder: For runs and policies.
    """

    kind: str
    names: Sequence[str]
    scores: tuple[str, str]
    run_row: Callable[..., dict[str, Any]]
    table: Callable[[Sequence[dict[str, Any]]], str]
    figure: Callable[[Sequence[dict[str, Any]]], str]
    results: Path
    picture: Path
    folder: Path

    def main(self, description: str) -> None:
        """Reads the command line; runs what is missing, or shows what is there."""
        parser = timing.parser(description)
        parser.set_defaults(json=self.results)
        parser.add_argument("--only", nargs="*", choices=sorted(self.names), help="these rows")
        parser.add_argument("--max-rows", type=int, help="stop after so many new rows")
        parser.add_argument("--show", action="store_true", help="train nothing")
        parser.add_argument(
            "--figure", type=Path, help=f"write the curves, such as {self.picture.name}"
        )
        parser.add_argument(
            "--folder", type=Path, default=self.folder, help="for runs and policies"
        )
        arguments = parser.parse_args()
        rows = read_rows(arguments.json)
        done = {(row[self.kind], row["seed"]) for row in rows}
        before, after = self.scores
        if not arguments.show:
            wanted = [
                (name, seed)
                for seed in (SEEDS[:1] if arguments.quick else SEEDS)
                for name in arguments.only or self.names
                if (name, seed) not in done
            ]
            for name, seed in wanted[: arguments.max_rows]:
                row = self.run_row(name, seed, arguments.folder, quick=arguments.quick)
                rows.append(row)
                timing.write_rows(arguments.json, rows)
                print(f"{name} {seed}: {row[before]:.3f} -> {row[after]:.3f}", flush=True)
        print(self.table(rows))
        worse = [
            f"{row[self.kind]} (seed {row['seed']})" for row in rows if row[after] <= row[before]
        ]
        print(f"\n{len(rows)} rows; not above where they began: {', '.join(worse) or 'none'}")
        if arguments.figure is not None:
            arguments.figure.parent.mkdir(parents=True, exist_ok=True)
            arguments.figure.write_text(self.figure(rows))
