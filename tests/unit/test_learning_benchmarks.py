"""The benchmarks of learning: their task is fair, their rows are kept, their picture is drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("preference_task")


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("learning")


def test_held_out_pairs_are_of_other_digits_and_judged_by_the_sign_alone(task: ModuleType) -> None:
    train, test = (task.pairs("s", 400, test=side) for side in (False, True))

    def digits(rows: list[dict[str, str]]) -> set[str]:
        return {"".join(sorted(row["prompt"][:-1])) for row in rows}

    assert not digits(train) & digits(test)
    for row in test:
        up = "".join(sorted(row["prompt"][:-1]))
        right, wrong = (up, up[::-1]) if row["prompt"].endswith("<") else (up[::-1], up)
        assert row["chosen"].rstrip(".") == right
        assert row["rejected"].rstrip(".") == wrong
        assert 0.4 <= row["margin"] <= 1.0


def test_judges_of_training_pairs_take_some_for_their_length(task: ModuleType) -> None:
    rows = task.pairs("s", 2000, test=False)
    wrong = [
        row
        for row in rows
        if (row["chosen"].rstrip(".") == "".join(sorted(row["prompt"][:-1])))
        is not row["prompt"].endswith("<")
    ]
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in wrong)
    assert 0.03 < len(wrong) / len(rows) < task.BIASED


def test_what_a_policy_starts_from_says_nothing_of_the_sign(task: ModuleType) -> None:
    rows = task.demonstrations("s", 2000)
    right = [
        (row["completion"].rstrip(".") == "".join(sorted(row["prompt"][:-1])))
        is row["prompt"].endswith("<")
        for row in rows
    ]
    assert 0.45 < sum(right) / len(right) < 0.55
    longest = max(len(row["prompt"]) + len(row["completion"]) + 1 for row in rows)
    assert longest <= task.LONGEST


def test_curves_are_drawn_a_panel_a_name(learning: ModuleType) -> None:
    curves = {"a": [(0, [0.0, 0.5, 1.0]), (1, [1.0])], "b": [(2, [0.5])]}
    drawn = learning.panels(curves, steps={"a": 9, "b": 12})
    assert "9 steps" in drawn
    assert "12 steps" in drawn
    root = ElementTree.fromstring(drawn)
    paths = [part.get("class") for part in root.iter("{http://www.w3.org/2000/svg}path")]
    assert paths == ["axis", "s0", "s1", "axis", "s2"]
    assert learning.thinned([1.0, 2.0, 3.0, 4.0], 2) == [1.5, 3.5]


def test_a_row_is_run_once_and_shown_again(tmp_path: Path) -> None:
    rows, figure = tmp_path / "rows.json", tmp_path / "curves.svg"
    command = [sys.executable, str(BENCHMARKS / "preference.py"), "--quick", "--json", str(rows)]
    command += ["--folder", str(tmp_path / "runs"), "--only", "cdpo", "rm: thurstone"]
    for more in ([], ["--show", "--figure", str(figure)]):
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    policy, reward_model = json.loads(rows.read_text())["rows"]
    assert (policy["loss"], reward_model["loss"]) == ("cdpo", "rm: thurstone")
    assert policy["before"] == 0.5, "nothing tells two completions apart before the first step"
    assert len(policy["curve"]) == 3
    assert "| `cdpo` | log ratio | 50.0% → " in done.stdout
    assert "rm: thurstone" in figure.read_text()
