"""What the benchmarks of learning have in common: rows that are kept, curves, and their picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

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
