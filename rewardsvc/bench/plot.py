"""Throughput against latency as an SVG that stands alone: no script, no style sheet, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rewardsvc.bench.measure import Row

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 90, 46, 56
NUM_TICKS = 6

LINES = (("p50", "p50_ms", "#2563eb"), ("p95", "p95_ms", "#d97706"), ("p99", "p99_ms", "#dc2626"))
INK, FAINT, PAPER = "#334155", "#e2e8f0", "#ffffff"


def throughput_latency_svg(rows: Sequence[Row], *, title: str, load_name: str) -> str | None:
    """Latency over throughput, a point for each step, labelled with its load.

    Args:
        rows: Steps in the order of their load.
        title: Above the chart.
        load_name: What the steps' `load` is.

    Returns:
        None if no step had an answer.
    """
    shown = [row for row in rows if row.num_ok]
    if not shown:
        return None
    x_top = _round_up(max(row.samples_per_s for row in shown))
    y_top = _round_up(max(row.p99_ms for row in shown))

    def x(value: float) -> float:
        return LEFT + value / x_top * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / y_top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    for i in range(NUM_TICKS):
        share = i / (NUM_TICKS - 1)
        at_x, at_y = x(share * x_top), y(share * y_top)
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y:.1f}" y2="{at_y:.1f}" '
            f'stroke="{FAINT}"/>',
            f'<text x="{LEFT - 8}" y="{at_y + 4:.1f}" text-anchor="end">'
            f"{_number(share * y_top)}</text>",
            f'<text x="{at_x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{_number(share * x_top)}</text>",
        ]
    for name, field, colour in LINES:
        points = [(x(row.samples_per_s), y(getattr(row, field))) for row in shown]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in points
        ]
        parts.append(
            f'<text x="{points[-1][0] + 8:.1f}" y="{points[-1][1] + 4:.1f}" fill="{colour}">'
            f"{name}</text>"
        )
    parts += [
        f'<text x="{x(row.samples_per_s):.1f}" y="{y(row.p99_ms) - 9:.1f}" '
        f'text-anchor="middle" font-size="11">{_number(row.load)}</text>'
        for row in shown
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [
        f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">samples a second '
        f"(numbers at the points: {escape(load_name)})</text>",
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">latency, ms</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= value)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
