"""The demo's two tasks: rows with a prompt, a solution to warm up on, and what a verifier needs.

Held-out rows are chosen by a hash of the problem, so that no held-out problem is ever trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from rewardsvc.verifiers.arithmetic import Symbol, evaluate

HERE = Path(__file__).parent

HELD_OUT_SHARE = 10
"""One problem in this many is held out."""

SIGNS = "+-*"
THREE_NUMBERS = ("{0}{p}{1}{q}{2}", "({0}{p}{1}){q}{2}", "{0}{p}({1}{q}{2})")
FOUR_NUMBERS = (
    "{0}{p}{1}{q}{2}{r}{3}",
    "({0}{p}{1}){q}({2}{r}{3})",
    "({0}{p}{1}{q}{2}){r}{3}",
    "{0}{p}({1}{q}{2}){r}{3}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task of the demo.

    Attributes:
        name: What `--task` takes.
        configs: Folder of its YAML files.
        scorer: The scorer in its service.yaml.
        alphabet: Every character of prompts and completions.
        draw: Makes one problem: a row with `prompt`, `completion`, `answer` and extra columns.
    """

    name: str
    configs: Path
    scorer: str
    alphabet: str
    draw: Callable[[random.Random], dict[str, Any]]


def draw_countdown(rng: random.Random) -> dict[str, Any]:
    """Three numbers, a target from 0 to 99, and a random expression that reaches it."""
    return _draw_countdown(rng, THREE_NUMBERS)


def draw_countdown4(rng: random.Random) -> dict[str, Any]:
    """The same with four numbers."""
    return _draw_countdown(rng, FOUR_NUMBERS)


def _draw_countdown(rng: random.Random, forms: tuple[str, ...]) -> dict[str, Any]:
    count = 3 if forms is THREE_NUMBERS else 4
    while True:
        numbers = [rng.randint(1, 9) for _ in range(count)]
        signs = dict(zip("pqr", rng.choices(SIGNS, k=3), strict=True))
        expression = rng.choice(forms).format(*numbers, **signs)
        target = _value(expression)
        if target.denominator == 1 and 0 <= target <= 99:
            shown = rng.sample(numbers, k=count)
            return {
                "prompt": f"{' '.join(map(str, shown))}>{target};",
                "completion": expression,
                "answer": str(target),
                "numbers": shown,
                "target": int(target),
            }


def _value(expression: str) -> Fraction:
    """The value of an expression of single digits."""
    return evaluate([Fraction(c) if c.isdigit() else cast("Symbol", c) for c in expression])


def draw_sort(rng: random.Random) -> dict[str, Any]:
    """Eight digits; the answer has them in ascending order."""
    digits = "".join(rng.choices("0123456789", k=8))
    answer = "".join(sorted(digits))
    return {"prompt": f"{digits}>", "completion": answer, "answer": answer}


COUNTDOWN = Task(
    name="countdown",
    configs=HERE / "countdown",
    scorer="countdown",
    alphabet="0123456789+-*/() >;",
    draw=draw_countdown,
)
COUNTDOWN4 = dataclasses.replace(COUNTDOWN, name="countdown4", draw=draw_countdown4)
SORT = Task(
    name="sort", configs=HERE / "sort", scorer="sort", alphabet="0123456789>", draw=draw_sort
)
TASKS = {task.name: task for task in (COUNTDOWN, COUNTDOWN4, SORT)}


def is_held_out(row: dict[str, Any]) -> bool:
    """Whether a problem belongs to the held-out tenth, however its numbers are arranged."""
    problem = [sorted(row.get("numbers", row["prompt"])), row["answer"]]
    return hashlib.sha256(json.dumps(problem).encode()).digest()[0] % HELD_OUT_SHARE == 0


def write_data(task: Task, folder: Path, *, seed: int, num_train: int, num_test: int) -> None:
    """Writes `train.jsonl` and `test.jsonl`, drawn alike, with no problem in both."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{task.name} train {seed}")
    train = _rows(task, rng, held_out=False)
    (folder / "train.jsonl").write_text(_lines(next(train) for _ in range(num_train)))
    # The held-out rows are the same for every seed, so that seeds can be compared.
    test = _rows(task, random.Random(f"{task.name} test"), held_out=True)
    (folder / "test.jsonl").write_text(_lines(next(test) for _ in range(num_test)))


def _rows(task: Task, rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    while True:
        row = task.draw(rng)
        if is_held_out(row) == held_out:
            yield row


def _lines(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
