"""The demo: a small policy learns from a reward service.

    make demo                  # Countdown: reach a target with three numbers
    make demo TASK=sort        # sort eight digits

Makes the data, warms a Llama of about 0.8M parameters up on random solutions, starts
`rewardsvc serve` as a process of its own, trains GRPO against it over gRPC, and writes a report and
`summary.json`.
Needs no download, no GPU, and two cores for a few minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from tasks import TASKS, write_data

from rewardsvc.policy_client import RewardClient
from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.online import OnlineConfig, OnlineResult, run_online
from rewardsvc.policy_client.train.report import write_report
from rewardsvc.policy_client.train.sft import SftConfig, run_sft

HERE = Path(__file__).parent
NUM_TRAIN = 50_000
NUM_TEST = 1000
START_TIMEOUT_S = 60.0

console = Console(highlight=False)


def main() -> None:
    """Runs the whole demo."""
    arguments = _parse_arguments()
    task = TASKS[arguments.task]
    out = arguments.out or Path("runs") / f"demo-{task.name}-{arguments.seed}"
    shutil.rmtree(out, ignore_errors=True)
    configs = HERE / task.configs
    began = time.perf_counter()

    console.rule(f"[bold]1. Data and a cold start ({task.name}, seed {arguments.seed})")
    write_data(task, out / "data", seed=arguments.seed, num_train=NUM_TRAIN, num_test=NUM_TEST)
    character_tokenizer(task.alphabet).save_pretrained(out / "tokenizer")
    policy = _warm_up(configs / "sft.yaml", out, arguments.seed)

    console.rule("[bold]2. The service")
    with running_service(configs / "service.yaml") as service:
        console.print(f"serving on {service.address}")
        console.rule("[bold]3. GRPO over gRPC")
        overrides = [
            f"model={policy}",
            f"output_dir={out / 'grpo'}",
            f"train_data={out / 'data'}",
            f"eval_data={out / 'data'}",
            f"reward={{type: service, address: '{service.address}', scorer: {task.scorer}}}",
            f"seed={arguments.seed}",
            *arguments.overrides,
        ]
        config = load_config(configs / "grpo.yaml", OnlineConfig, overrides)
        training = time.perf_counter()
        result = run_online("grpo", config)
        train_seconds = time.perf_counter() - training
        reward_rpcs = service.num_rpcs(task.scorer)

    console.rule("[bold]4. What came of it")
    summary = summarize(result, train_seconds=train_seconds, reward_rpcs=reward_rpcs)
    (out / "grpo" / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    page = write_report(out / "grpo")
    show(summary)
    console.print(f"report   {page}")
    console.print(f"in all   {time.perf_counter() - began:.0f} s")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=sorted(TASKS), default="countdown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: runs/demo-TASK-SEED")
    parser.add_argument(
        "overrides", nargs="*", help="field=value pairs for grpo.yaml, for instance max_steps=20"
    )
    return parser.parse_args()


def _warm_up(config: Path, out: Path, seed: int) -> Path:
    overrides = [
        f"tokenizer={out / 'tokenizer'}",
        f"output_dir={out / 'sft'}",
        f"train_data={out / 'data'}",
        f"eval_data={out / 'data'}",
        f"seed={seed}",
    ]
    return run_sft(load_config(config, SftConfig, overrides)).model_dir


class Service:
    """A running `rewardsvc serve`.

    Attributes:
        address: HOST:PORT of gRPC.
    """

    def __init__(self, address: str, metrics_port: int) -> None:
        self.address = address
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"

    def num_rpcs(self, scorer: str) -> int:
        """Score calls that the service itself has counted."""
        with urllib.request.urlopen(self._metrics_url, timeout=10) as reply:
            page = reply.read().decode()
        found = re.search(rf'rewardsvc_scorer_seconds_count{{scorer="{scorer}"}} (\S+)', page)
        return int(float(found[1])) if found else 0


@contextmanager
def running_service(config: Path) -> Iterator[Service]:
    """Runs `rewardsvc serve CONFIG` on free ports within the block; SIGTERM ends it."""
    port, metrics_port = free_port(), free_port()
    command = [sys.executable, "-m", "rewardsvc", "serve", str(config)]
    command += ["--port", str(port), "--metrics-port", str(metrics_port)]
    process = subprocess.Popen(command)
    try:
        address = f"127.0.0.1:{port}"
        with RewardClient(address) as client:
            client.wait_until_ready(timeout_s=START_TIMEOUT_S)
        yield Service(address, metrics_port)
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def summarize(result: OnlineResult, *, train_seconds: float, reward_rpcs: int) -> dict[str, Any]:
    """Held-out accuracy before and after, and what it took."""
    before, after = result.eval_before, result.eval_after
    return {
        "sampled_before": before["eval/sampled_accuracy"],
        "sampled_after": after["eval/sampled_accuracy"],
        "greedy_before": before["eval/greedy_accuracy"],
        "greedy_after": after["eval/greedy_accuracy"],
        "num_prompts": int(after["eval/num_prompts"]),
        "train_seconds": round(train_seconds, 1),
        "reward_rpcs": reward_rpcs,
    }


def show(summary: dict[str, Any]) -> None:
    """Prints a summary."""
    count = summary["num_prompts"]
    for kind in ("sampled", "greedy"):
        before, after = summary[f"{kind}_before"], summary[f"{kind}_after"]
        console.print(
            f"{kind:8} {before:6.1%} -> [bold]{after:6.1%}[/]   "
            f"({100 * (after - before):+.1f} points, {count} held-out prompts)"
        )
    console.print(f"training {summary['train_seconds']} s, {summary['reward_rpcs']} reward RPCs")


if __name__ == "__main__":
    main()
