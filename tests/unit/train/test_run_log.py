"""The run log survives kills, resumes and numbers that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rewardsvc.policy_client.train.run_log import RunLog, SampleRow, read_run


def open_log(directory: Path, **options: object) -> RunLog:
    return RunLog(
        directory,
        algorithm="grpo",
        total_steps=10,
        config={"seed": 1},
        tensorboard=False,
        **options,
    )


def test_read_run_gives_back_what_was_logged(tmp_path: Path) -> None:
    row = SampleRow(prompt="p\n", completion="c", answer="a", reward=0.5, components={"math": 1.0})
    with open_log(tmp_path) as log:
        log.step(1, {"reward": 0.25}, {"generate": 2.0})
        log.step(2, {"reward": 0.5, "kl": 0.1})
        log.samples(2, "after", [row, SampleRow(prompt="p", completion="")])
    run = read_run(tmp_path)
    assert (run.algorithm, run.total_steps, run.config) == ("grpo", 10, {"seed": 1})
    assert run.steps == (1, 2)
    assert run.metrics["reward"] == (0.25, 0.5)
    assert math.isnan(run.metrics["kl"][0])
    assert run.phases["generate"][0] == 2.0
    assert run.samples[0].rows[0] == row
    assert run.samples[0].rows[1].reward is None


def test_metrics_file_is_strict_json_even_with_nan(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    with open_log(tmp_path) as log:
        log.step(1, {"reward": math.nan, "loss": math.inf})
        log.samples(1, "x", [SampleRow(prompt="", completion="", reward=math.nan)])
    for name in ("metrics.jsonl", "samples.jsonl"):
        for line in (tmp_path / name).read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    assert math.isnan(read_run(tmp_path).metrics["reward"][0])


def test_rewind_drops_later_steps_and_samples(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in range(1, 6):
            log.step(step, {"reward": step})
            log.samples(step, "train", [SampleRow(prompt="", completion=str(step))])
    with open_log(tmp_path) as log:
        log.rewind(3)
        log.step(4, {"reward": 40.0})
    run = read_run(tmp_path)
    assert run.steps == (1, 2, 3, 4)
    assert run.metrics["reward"] == (1, 2, 3, 40.0)
    assert [group.step for group in run.samples] == [1, 2, 3]


def test_no_step_is_counted_twice_without_a_rewind(tmp_path: Path) -> None:
    for offset in (0.0, 100.0):
        with open_log(tmp_path) as log:
            for step in range(1, 4):
                log.step(step, {"reward": step + offset})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["metrics"]["reward"] == 103.0


def test_torn_last_line_costs_that_line_only(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in (1, 2, 3):
            log.step(step, {"reward": step})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert read_run(tmp_path).steps == (1, 2)
    with open_log(tmp_path) as log:
        log.step(3, {"reward": 30.0})
    run = read_run(tmp_path)
    assert run.steps == (1, 2, 3)
    assert run.metrics["reward"] == (1, 2, 30.0)


def test_elapsed_time_goes_on_after_a_resume_and_skips_what_was_dropped(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.step(1, {})
        log.step(2, {})
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["elapsed_s"], lines[1]["elapsed_s"] = 1000.0, 5000.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with open_log(tmp_path) as log:
        log.rewind(1)
        log.step(2, {})
    assert 1000.0 <= read_run(tmp_path).elapsed_s[1] < 2000.0


def test_samples_of_the_same_step_and_tag_replace_each_other(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.samples(0, "before", [SampleRow(prompt="p", completion="old")])
        log.samples(0, "before", [SampleRow(prompt="p", completion="new")])
    groups = read_run(tmp_path).samples
    assert [row.completion for group in groups for row in group.rows] == ["new"]


def test_prints_one_line_every_logging_steps_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"logging_steps": 4}
    with RunLog(tmp_path, algorithm="rloo", total_steps=9, config=config, tensorboard=False) as log:
        for step in range(1, 10):
            log.step(step, {"reward": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["4/9", "8/9", "9/9"]
    assert "reward 0.5" in lines[0]


def test_tensorboard_gets_finite_numbers_and_purges_what_a_resume_repeats(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is optional"
    )
    for first in (1, 3):
        with RunLog(tmp_path, algorithm="grpo", total_steps=4, config={}) as log:
            for step in range(first, 5):
                log.step(step, {"reward": step * first, "kl": math.nan})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward"]
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [
        (1, 1),
        (2, 2),
        (3, 9),
        (4, 12),
    ]


def test_empty_folder_is_a_run_without_steps(tmp_path: Path) -> None:
    run = read_run(tmp_path)
    assert run.steps == ()
    assert run.samples == ()


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_run(tmp_path / "nowhere")
