"""The chart renderer puts points where they belong."""

from __future__ import annotations

import json
import math
import re

import pytest

from rewardsvc.policy_client.train.report.page import pair_samples, pick_samples
from rewardsvc.policy_client.train.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    format_number,
    line_chart,
    stacked_chart,
    tick_labels,
    ticks,
)
from rewardsvc.policy_client.train.run_data import SampleGroup
from rewardsvc.policy_client.train.run_log import SampleRow


def points(svg: str, css: str) -> list[tuple[float, float]]:
    found = re.search(rf'<path class="{css}" d="([^"]*)"', svg)
    assert found
    numbers = re.findall(r"(-?[\d.]+),(-?[\d.]+)", found[1])
    return [(float(x), float(y)) for x, y in numbers]


def test_points_span_the_plot_and_keep_their_proportions() -> None:
    drawing = line_chart([Line(label="a", steps=[0, 5, 10], values=[0, 1, 4])], title="t")
    assert drawing is not None
    (x0, y0), (x1, y1), (x2, y2) = points(drawing.svg, "line c0")
    assert (x0, x2) == (LEFT, WIDTH - RIGHT)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert TOP < y2 < y1 < y0 < HEIGHT - BOTTOM
    assert (y0 - y1) / (y0 - y2) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    "values", [[3.0, 3.0], [0.0, 0.0], [1e-12, 1e-12], [-5.0], [1e300, -1e300]]
)
def test_flat_single_and_extreme_series_are_drawn_inside_the_plot(values: list[float]) -> None:
    steps = list(range(len(values)))
    drawing = line_chart([Line(label="a", steps=steps, values=values)], title="t")
    assert drawing is not None
    coordinates = re.findall(r'(?:cy="|,)([\d.]+)', re.sub(r'class="tick"[^>]*', "", drawing.svg))
    assert coordinates
    assert all(TOP <= float(y) <= HEIGHT - BOTTOM for y in coordinates)


def test_axis_of_a_share_that_is_always_zero_starts_at_zero() -> None:
    line = Line(label="a", steps=[0, 1], values=[0.0, 0.0])
    drawing = line_chart([line], title="t", from_zero=True, percent=True)
    assert drawing is not None
    assert ">-" not in drawing.svg
    assert ">100%<" in drawing.svg


def test_nothing_finite_is_no_chart() -> None:
    line = Line(label="a", steps=[1, 2], values=[math.nan, math.inf])
    assert line_chart([line], title="t") is None
    assert line_chart([], title="t") is None
    assert stacked_chart([line], title="t") is None


def test_thinning_keeps_the_mean_and_the_gaps() -> None:
    values = [float(i % 2) for i in range(10 * MAX_POINTS)]
    values[:100] = [math.nan] * 100
    line = Line(label="a", steps=list(range(len(values))), values=values)
    drawing = line_chart([line], title="t")
    assert drawing is not None
    series = json.loads(drawing.hover_json)["series"][0]
    assert len(series["x"]) == MAX_POINTS
    assert series["y"][:11] == [None] * 10 + ["0.5"]


def test_moving_average_does_not_bridge_a_gap() -> None:
    values = [float(i % 2) for i in range(100)]
    values[40:60] = [math.nan] * 20
    drawing = line_chart([Line(label="a", steps=list(range(100)), values=values)], title="t")
    assert drawing is not None
    assert drawing.smoothed_over > 1
    drawn = [x for x, _ in points(drawing.svg, "line c0")]
    width = WIDTH - RIGHT - LEFT
    gap = (LEFT + 39.5 / 99 * width, LEFT + 59.5 / 99 * width)
    assert len(drawn) == 80
    assert not any(gap[0] < x < gap[1] for x in drawn)


def test_areas_add_up() -> None:
    lines = [
        Line(label=n, steps=[0, 1], values=v) for n, v in (("a", [1, 1]), ("b", [1, math.nan]))
    ]
    drawing = stacked_chart(lines, title="t")
    assert drawing is not None
    first, second = re.findall(r'<polygon class="area c\d" points="([^"]*)"', drawing.svg)
    top_of_first = [float(p.split(",")[1]) for p in first.split()[:2]]
    top_of_second = [float(p.split(",")[1]) for p in second.split()[:2]]
    floor = HEIGHT - BOTTOM
    assert floor - top_of_second[0] == pytest.approx(2 * (floor - top_of_first[0]), abs=0.2)
    assert top_of_second[1] == top_of_first[1]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 200, [0, 50, 100, 150, 200]),
        (-0.03, 0.03, [-0.02, 0, 0.02]),
        (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.25, "0.25"),
        (3e-5, "3e-5"),
        (6e-4, "0.0006"),
        (123456, "123,456"),
        (math.nan, "–"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("values", "percent", "texts"),
    [
        ([0.0, 0.25, 0.5], False, ["0", "0.25", "0.5"]),
        ([0.99975, 1.0, 1.00025], False, ["0.99975", "1", "1.00025"]),
        ([1 - 1e-7, 1.0, 1 + 1e-7], False, ["0.9999999", "1", "1.0000001"]),
        ([0.99995, 1.0], True, ["99.995%", "100%"]),
        ([123_456.0, 123_456.5], False, ["123456", "123456.5"]),
        ([7.0], False, ["7"]),
    ],
)
def test_labels_of_an_axis_do_not_round_their_ticks(
    values: list[float], percent: bool, texts: list[str]
) -> None:
    assert tick_labels(values, percent=percent) == texts


def test_rounding_errors_are_drawn_as_a_flat_line() -> None:
    values = [1.0 + 1e-7 * (i % 2) for i in range(10)]
    drawing = line_chart([Line(label="a", steps=list(range(10)), values=values)], title="t")
    assert drawing is not None
    heights = [y for _, y in points(drawing.svg, "line c0")]
    assert max(heights) - min(heights) < 0.2
    news = [1.0 + 1e-2 * (i % 2) for i in range(10)]
    drawing = line_chart([Line(label="a", steps=list(range(10)), values=news)], title="t")
    assert drawing is not None
    heights = [y for _, y in points(drawing.svg, "line c0")]
    assert max(heights) - min(heights) > 100


def group(step: int, tag: str, *rows: tuple[str, str]) -> SampleGroup:
    made = tuple(SampleRow(prompt=prompt, completion=text) for prompt, text in rows)
    return SampleGroup(step=step, tag=tag, rows=made)


def test_samples_are_paired_by_prompt() -> None:
    early = group(0, "eval", ("p", "p0"), ("q", "q0"), ("p", "p1"))
    late = group(9, "eval", ("q", "q9"), ("p", "p9"), ("new", "n9"))
    pairs = pair_samples(early, late)
    shown = [
        (p.prompt, p.before and p.before.completion, p.after and p.after.completion) for p in pairs
    ]
    assert shown == [
        ("q", "q0", "q9"),
        ("p", "p0", "p9"),
        ("new", None, "n9"),
        ("p", "p1", None),
    ]


def test_before_and_after_win_over_other_tags_and_else_the_widest_span() -> None:
    a, b, c, d = (
        group(0, "eval", ("p", "a")),
        group(50, "eval", ("p", "b")),
        group(1, "before", ("p", "c")),
        group(40, "after", ("p", "d")),
    )
    assert pick_samples([a, c, d, b]) == (c, d)
    assert pick_samples([a, c, b]) == (a, b)
    assert pick_samples([a]) == (None, a)
    assert pick_samples([]) == (None, None)
