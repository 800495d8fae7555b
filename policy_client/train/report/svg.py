"""Charts as inline SVG, drawn here so that a report needs no library and no network.

Colours come from the page's style sheet by class (`c0`, `c1`, …), so that light and dark need no
second drawing. Every text is escaped: labels may come from a server that we do not trust.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 28
MAX_POINTS = 400
"""More points than this are averaged in bins: a screen has no more pixels than that."""
SMOOTH_FROM = 40
"""From this many points on, a moving average is drawn over the faint raw line."""
NUM_COLOURS = 8
FEWEST_DIGITS, MOST_DIGITS = 5, 15
TELLABLE = 0.02
"""Share of the gap between two ticks by which a label may be off."""
NARROWEST = 1e-3
"""An axis spans at least this share of its values: what is smaller is rounding, not news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart. All sequences have the same length; NaN is a gap.

    Attributes:
        label: For the legend.
        steps: Positions on the horizontal axis, increasing.
        values: What is drawn.
        low: Lower edge of a band around the line, with `high`.
        high: Upper edge.
        right: Whether it has an axis of its own on the right.
        smooth: Whether a long line may be drawn as a moving average over the faint raw one.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    right: bool = False
    smooth: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawn chart.

    Attributes:
        svg: The picture.
        hover_json: What the page's script shows under the pointer.
        labels: Legend: label and number of colour.
        smoothed_over: Steps under the moving average's window; 0 if nothing was smoothed.
    """

    svg: Markup
    hover_json: str
    labels: tuple[tuple[str, int], ...]
    smoothed_over: int


@dataclass(frozen=True, slots=True)
class _Axis:
    """A linear map from [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(
    lines: Sequence[Line], *, title: str, from_zero: bool = False, percent: bool = False
) -> Drawing | None:
    """Draws lines over steps.

    Args:
        lines: In the order of their colours; lines without a finite value are left out.
        title: For screen readers.
        from_zero: Whether the left axis must show zero.
        percent: Whether values are shares to be written as percentages.

    Returns:
        None if no line has a finite value.
    """
    lines = [_thin(line) for line in lines if any(math.isfinite(v) for v in line.values)]
    if not lines:
        return None
    steps = [step for line in lines for step in line.steps]
    has_right = any(line.right for line in lines)
    x = _Axis(*_spread(min(steps), max(steps)), LEFT, WIDTH - (LEFT if has_right else RIGHT))
    smooth = [_smoothed(line) for line in lines]
    axes = {
        side: _value_axis([s for s in smooth if s.right is side], lines, side, from_zero)
        for side in (False, True)
        if any(line.right is side for line in lines)
    }
    parts = [_grid(x, axes, percent)]
    for number, (line, soft) in enumerate(zip(lines, smooth, strict=True)):
        y = axes[line.right]
        colour = number % NUM_COLOURS
        if soft.low is not None and soft.high is not None:
            parts.append(_band(soft, x, y, colour))
        if soft is not line:
            parts.append(_path(line, x, y, f"line raw c{colour}"))
        parts.append(_path(soft, x, y, f"line c{colour}"))
    return Drawing(
        svg=_wrap(parts, title),
        hover_json=_hover(lines, x, percent),
        labels=tuple((line.label, i % NUM_COLOURS) for i, line in enumerate(lines)),
        smoothed_over=max(_steps_smoothed(line) for line in lines),
    )


def stacked_chart(lines: Sequence[Line], *, title: str) -> Drawing | None:
    """Draws lines on top of each other as areas, the first at the bottom; NaN counts as zero.

    Args:
        lines: Values at least zero, over the same steps.
        title: For screen readers.

    Returns:
        None if there is nothing to draw.
    """
    lines = [_thin(line) for line in lines if any(math.isfinite(v) for v in line.values)]
    if not lines or not lines[0].steps:
        return None
    steps = lines[0].steps
    base = [0.0] * len(steps)
    tops: list[list[float]] = []
    for line in lines:
        base = [
            b + (v if math.isfinite(v) else 0.0) for b, v in zip(base, line.values, strict=True)
        ]
        tops.append(base)
    x = _Axis(*_spread(min(steps), max(steps)), LEFT, WIDTH - RIGHT)
    y = _Axis(0.0, max(base) * 1.05 or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, {False: y}, percent=False)]
    below = [0.0] * len(steps)
    for number, top in enumerate(tops):
        edge = [*zip(steps, top, strict=True), *reversed([*zip(steps, below, strict=True)])]
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in edge)
        parts.append(Markup('<polygon class="area c{}" points="{}"/>').format(number % 8, points))
        below = top
    return Drawing(
        svg=_wrap(parts, title),
        hover_json=_hover(lines, x, percent=False),
        labels=tuple((line.label, i % NUM_COLOURS) for i, line in enumerate(lines)),
        smoothed_over=0,
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high]; at least one."""
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    found: list[float] = []
    while (first + len(found)) * step <= high + step * 1e-9:
        found.append((first + len(found)) * step)
    return found or [low]


def tick_labels(values: Sequence[float], *, percent: bool = False) -> list[str]:
    """Numbers of an axis with as many digits as it takes not to round them.

    Args:
        values: Equally spaced.
        percent: Whether they are shares.
    """
    texts = [format_number(value, percent=percent) for value in values]
    scale = 100.0 if percent else 1.0
    gap = abs(values[-1] - values[0]) * scale / max(1, len(values) - 1)
    for digits in range(FEWEST_DIGITS, MOST_DIGITS + 1):
        if all(
            abs(float(text.rstrip("%").replace(",", "")) - value * scale) <= gap * TELLABLE
            for text, value in zip(texts, values, strict=True)
        ):
            break
        texts = [f"{value * scale:.{digits}g}{'%' if percent else ''}" for value in values]
    return texts


def format_number(value: float, *, percent: bool = False) -> str:
    """A number as short as it can be read."""
    if not math.isfinite(value):
        return "–"
    if percent:
        return f"{value * 100:.3g}%"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    if abs(value) >= 1e5:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.4g}"


def _thin(line: Line) -> Line:
    """At most MAX_POINTS points: means of bins, without the NaN in them."""
    size = math.ceil(len(line.steps) / MAX_POINTS)
    if size <= 1:
        return line
    starts = range(0, len(line.steps), size)

    def bins(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else [_mean(values[i : i + size]) for i in starts]

    return Line(
        label=line.label,
        steps=bins(line.steps) or [],
        values=bins(line.values) or [],
        low=bins(line.low),
        high=bins(line.high),
        right=line.right,
        smooth=line.smooth,
    )


def _smoothed(line: Line) -> Line:
    window = _window(line)
    if window <= 1:
        return line
    return Line(
        label=line.label,
        steps=line.steps,
        values=_moving_mean(line.values, window),
        low=None if line.low is None else _moving_mean(line.low, window),
        high=None if line.high is None else _moving_mean(line.high, window),
        right=line.right,
    )


def _window(line: Line) -> int:
    """Points under the moving average, an odd number; 1 is none."""
    num_points = len(line.steps)
    return max(3, num_points // 20) | 1 if line.smooth and num_points >= SMOOTH_FROM else 1


def _steps_smoothed(line: Line) -> int:
    gap = (line.steps[-1] - line.steps[0]) / max(1, len(line.steps) - 1)
    return round(_window(line) * gap) if _window(line) > 1 else 0


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean around each point; a gap stays a gap."""
    half = window // 2
    return [
        _mean(values[max(0, i - half) : i + half + 1]) if math.isfinite(value) else math.nan
        for i, value in enumerate(values)
    ]


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _value_axis(
    smooth: Sequence[Line], lines: Sequence[Line], right: bool, from_zero: bool
) -> _Axis:
    shown = [v for line in lines if line.right is right for v in line.values]
    for line in smooth:
        shown += [*(line.low or ()), *(line.high or ())]
    finite = [v for v in shown if math.isfinite(v)]
    low, high = min(finite), max(finite)
    if from_zero and not right:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = (0.0, 1.0) if from_zero and low == high == 0.0 else _spread(low, high)
    narrow = NARROWEST * max(abs(low), abs(high)) - (high - low)
    if narrow > 0:
        low, high = low - narrow / 2, high + narrow / 2
    room = (high - low) * 0.06
    return _Axis(low if from_zero and low == 0 else low - room, high + room, HEIGHT - BOTTOM, TOP)


def _spread(low: float, high: float) -> tuple[float, float]:
    """An interval that is not empty."""
    if high > low:
        return low, high
    room = abs(low) * 0.5 or 1.0
    return low - room, high + room


def _grid(x: _Axis, axes: dict[bool, _Axis], percent: bool) -> Markup:
    parts = []
    for side, y in axes.items():
        values = ticks(y.low, y.high, 6)
        texts = tick_labels(values, percent=percent and not side)
        for value, text in zip(values, texts, strict=True):
            at = y(value)
            if not side:
                parts.append(
                    Markup(
                        '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                    ).format(x.start, x.end, at, at)
                )
            parts.append(
                Markup(
                    '<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
                ).format(
                    x.end + 6 if side else x.start - 6,
                    at + 4,
                    "start" if side else "end",
                    text,
                )
            )
    for value in ticks(x.low, x.high, 7):
        if value == round(value):
            parts.append(
                Markup(
                    '<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
                ).format(x(value), HEIGHT - 8, format_number(value))
            )
    return Markup("").join(parts)


def _path(line: Line, x: _Axis, y: _Axis, classes: str) -> Markup:
    """The line, with gaps where there is no value, and dots where values are few or stand alone."""
    runs: list[list[str]] = [[]]
    for step, value in zip(line.steps, line.values, strict=True):
        if math.isfinite(value):
            runs[-1].append(f"{x(step):.1f},{y(value):.1f}")
        elif runs[-1]:
            runs.append([])
    few = len(line.steps) < SMOOTH_FROM // 2
    strokes = "".join(f"M{' L'.join(run)}" for run in runs if len(run) > 1)
    dots = Markup("").join(
        Markup('<circle class="{}" cx="{}" cy="{}" r="2.5"/>').format(classes, *point.split(","))
        for run in runs
        for point in run
        if few or len(run) == 1
    )
    return Markup('<path class="{}" d="{}"/>').format(classes, strokes) + dots


def _band(line: Line, x: _Axis, y: _Axis, colour: int) -> Markup:
    assert line.low is not None
    assert line.high is not None
    edges = [
        (step, low, high)
        for step, low, high in zip(line.steps, line.low, line.high, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    outline = [(s, high) for s, _, high in edges] + [(s, low) for s, low, _ in reversed(edges)]
    points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in outline)
    return Markup('<polygon class="band c{}" points="{}"/>').format(colour, points)


def _wrap(parts: Sequence[Markup], title: str) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}'
        '<line class="cursor" y1="{}" y2="{}" x1="-9" x2="-9"/></svg>'
    ).format(WIDTH, HEIGHT, escape(title), Markup("").join(parts), TOP, HEIGHT - BOTTOM)


def _hover(lines: Sequence[Line], x: _Axis, percent: bool) -> str:
    series = [
        {
            "label": line.label,
            "colour": number % NUM_COLOURS,
            "x": [round(step, 1) for step in line.steps],
            "y": [
                format_number(v, percent=percent and not line.right) if math.isfinite(v) else None
                for v in line.values
            ],
        }
        for number, line in enumerate(lines)
    ]
    return json.dumps(
        {"width": WIDTH, "x": [x.low, x.high], "px": [x.start, x.end], "series": series}
    )
