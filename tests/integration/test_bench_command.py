"""`rewardsvc bench` against real servers: rows, refusals, exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures_server import ServerProcess
from typer.testing import CliRunner

from rewardsvc.commands import app

StartServer = Callable[..., ServerProcess]

SHORT = ("--duration", "0.6", "--warmup", "0.2", "--timeout", "20")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *SHORT, *arguments])


@pytest.mark.parametrize("options", [("--concurrency", "1,3"), ("--rate", "40", "--stream")])
def test_running_server_is_measured(
    options: tuple[str, ...], server_process: StartServer, tmp_path: Path
) -> None:
    server = server_process()
    out, plot = tmp_path / "out.json", tmp_path / "plot.svg"

    result = run(
        "--address", server.address, "--scorer", "length", "--per-call", "2",
        *options, "--json", str(out), "--plot", str(plot),
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == len(options[1].split(","))
    for row in rows:
        assert row["num_ok"] == row["num_calls"] > 5
        assert row["samples_per_s"] > 10
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert "<svg" in plot.read_text()
    if "--rate" in options:
        # Poisson with rate 40 in 0.6 s: 24 calls in the mean, and fewer than 60 almost surely.
        assert rows[0]["num_calls"] < 60


def test_server_is_started_and_its_view_is_shown(tmp_path: Path) -> None:
    import tiny_models

    tiny_models.write_reward_model(tmp_path / "rm", "llama")
    config = tmp_path / "service.yaml"
    config.write_text(
        "engine: {device: cpu, num_torch_threads: 1}\n"
        "scorers: {rm: {type: orm, model: ./rm, max_length: 100, truncation_side: left}}\n"
    )
    out = tmp_path / "out.json"

    result = run(
        str(config), "--scorer", "rm", "--concurrency", "4", "--unit", "tokens",
        "--vocab-size", "40", "--prompt", "20", "--completion", "uniform:5:30",
        "--roofline", "cpu", "--json", str(out),
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    (row,) = document["rows"]
    assert row["item_errors"] == 0
    assert row["tokens_per_s"] > 100
    assert row["server"]["num_batches"] > 1
    assert row["server"]["forward_ms"] > 0
    assert 0 < row["roofline_share"] < 1
    assert document["machine"]["measured"]["gemm_flops"] > 1e8


def test_refused_calls_are_counted_and_fail_the_command(server_process: StartServer) -> None:
    server = server_process()
    result = run("--address", server.address, "--scorer", "nobody", "--concurrency", "2")
    assert result.exit_code == 1
    assert re.search(r"[1-9]\d* NOT_FOUND", " ".join(result.output.split()))
    assert "no sample was scored" in result.output


def test_samples_with_errors_fail_the_command(server_process: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text('{"completion": "raise:because"}\n')
    server = server_process()
    result = run(
        "--address", server.address, "--scorer", "obey", "--file", str(file), "--concurrency", "1"
    )
    assert result.exit_code == 1
    assert "item errors" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "configuration file or --address"),
        (("--address", "x:1"), "--scorer"),
        (("--address", "x:1", "--scorer", "a", "--rate", "1", "--concurrency", "1"), "either"),
        (("--address", "x:1", "--scorer", "a", "--concurrency", "0"), "above 0"),
        (("--address", "x:1", "--scorer", "a", "--prompt", "far"), "length 'far'"),
        (("--address", "x:1", "--scorer", "a", "--unit", "miles"), "miles"),
        (("--address", "x:1", "--scorer", "a", "--roofline", "tpu"), "tpu"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
