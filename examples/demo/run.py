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
import shutil
import time
from pathlib import Path
from typing import Any

from cold_start import cold_start
from rich.console import Console
from service import running_service
from tasks import TASKS

from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.online import OnlineConfig, OnlineResult, run_online
from rewardsvc.policy_client.train.report import write_report

QUICK_OVERRIDES = ("max_steps=2", "num_prompts=4", "num_generations=4", "num_eval_prompts=20")

console = Console(highlight=False)


def main() -> None:
    """Runs the whole demo."""
    arguments = _parse_arguments()
    task = TASKS[arguments.task]
    out = arguments.out or Path("runs") / f"demo-{task.name}-{arguments.seed}"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()

    console.rule(f"[bold]1. Data and a cold start ({task.name}, seed {arguments.seed})")
    policy = cold_start(task, out, arguments.seed, quick=arguments.quick)

    console.rule("[bold]2. The service")
    with running_service(task.configs / "service.yaml") as service:
        console.print(f"serving on {service.address}")
        console.rule("[bold]3. GRPO over gRPC")
        overrides = [
            f"model={policy}",
            f"output_dir={out / 'grpo'}",
            f"train_data={out / 'data'}",
            f"eval_data={out / 'data'}",
            f"reward={{type: service, address: '{service.address}', scorer: {task.scorer}}}",
            f"seed={arguments.seed}",
            *(QUICK_OVERRIDES if arguments.quick else ()),
            *arguments.overrides,
        ]
        config = load_config(task.configs / "grpo.yaml", OnlineConfig, overrides)
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
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--out", type=Path, help="default: runs/demo-TASK-SEED")
    parser.add_argument(
        "overrides", nargs="*", help="field=value pairs for grpo.yaml, for instance max_steps=20"
    )
    return parser.parse_args()


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
