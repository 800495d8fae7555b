"""The demos run from end to end: data, cold start, service, training, report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo"


def run(script: str, out: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, DEMO / script, "--quick", "--out", out, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=out.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("task", ["countdown", "countdown4", "sort"])
def test_the_demo_leaves_a_summary_and_a_report(task: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = run("run.py", out, "--task", task)
    summary = json.loads((out / "grpo" / "summary.json").read_text())
    assert set(summary) == {
        "sampled_before",
        "sampled_after",
        "greedy_before",
        "greedy_after",
        "num_prompts",
        "train_seconds",
        "reward_rpcs",
    }
    assert summary["num_prompts"] == 20
    # Two evaluations, greedy and sampled, and two steps: the service has seen each of them.
    assert summary["reward_rpcs"] == 6
    page = (out / "grpo" / "report.html").read_text()
    assert "<svg" in page
    assert "held-out prompts" in said


@pytest.mark.timeout(300)
@pytest.mark.parametrize("algorithm", ["rloo", "ppo"])
def test_the_learned_reward_demo_shows_proxy_and_true_quality(
    algorithm: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run("learned_reward.py", out, "--algorithm", algorithm)
    summary = json.loads((out / algorithm / "summary.json").read_text())
    assert {"proxy_before", "proxy_after", "true_quality_before", "true_quality_after"} <= set(
        summary
    )
    assert 0.0 <= summary["true_quality_after"] <= 1.0
    assert summary["num_pairs"] > 50
    lines = (out / algorithm / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])["metrics"]
    assert metrics["true_quality"] == pytest.approx(metrics["rewards/true_quality/mean"])
    assert "true quality" in (out / algorithm / "report.html").read_text()
