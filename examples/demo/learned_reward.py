"""The learned-reward path: preferences, a reward model, a service, and a policy trained against it.

    make demo-rm               # RLOO
    make demo-rm ALGO=ppo

The task is sorting digits, where the true quality of an answer can be computed. A barely warmed-up
policy writes completions; the better and the worse of each prompt become preference pairs; a
Bradley-Terry reward model learns from them and is served as `orm`, the cold policy beside it as the
reference of the KL penalty. The policy never sees the true quality, but the report does: proxy
reward and true quality stand side by side.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import yaml
from cold_start import cold_start
from preferences import write_preferences
from rich.console import Console
from service import running_service
from tasks import HERE, SORT

from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.online import OnlineConfig, OnlineResult, run_online
from rewardsvc.policy_client.train.report import write_report
from rewardsvc.policy_client.train.reward_model import RewardModelConfig, run_rm

CONFIGS = HERE / "learned"
NUM_PREFERENCE_PROMPTS = 12_000
QUICK_PREFERENCE_PROMPTS = 200
QUICK_RM = ("max_steps=3", "eval_size=20")
QUICK_RL = ("max_steps=2", "num_prompts=8", "num_eval_prompts=20")
MAX_NEW_TOKENS = 9

console = Console(highlight=False)


def main() -> None:
    """Runs the whole demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=("rloo", "ppo"), default="rloo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--out", type=Path, help="default: runs/demo-rm-ALGORITHM-SEED")
    parser.add_argument("overrides", nargs="*", help="field=value pairs for the RL configuration")
    arguments = parser.parse_args()
    seed, algorithm = arguments.seed, arguments.algorithm
    out: Path = arguments.out or Path("runs") / f"demo-rm-{algorithm}-{seed}"
    shutil.rmtree(out, ignore_errors=True)

    console.rule(f"[bold]1. A cold start (sort, seed {seed})")
    policy = cold_start(SORT, out, seed, quick=arguments.quick)

    console.rule("[bold]2. Preferences and a reward model")
    pairs = out / "pairs.jsonl"
    num_pairs = write_preferences(
        policy,
        out / "data" / "train.jsonl",
        pairs,
        num_prompts=QUICK_PREFERENCE_PROMPTS if arguments.quick else NUM_PREFERENCE_PROMPTS,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
    )
    overrides = [
        f"model={policy}",
        f"output_dir={out / 'rm'}",
        f"train_data={pairs}",
        f"seed={seed}",
        *(QUICK_RM if arguments.quick else ()),
    ]
    reward_model = run_rm(load_config(CONFIGS / "rm.yaml", RewardModelConfig, overrides))
    accuracy = reward_model.eval_after["eval_accuracy"]
    console.print(f"{num_pairs} pairs; held-out pair accuracy {accuracy:.1%}")

    console.rule("[bold]3. The service")
    config = out / "service.yaml"
    config.write_text(yaml.safe_dump(service_config(reward_model.model_dir, policy)))
    with running_service(config) as service:
        console.rule(f"[bold]4. {algorithm.upper()} against the reward model")
        overrides = [
            f"model={policy}",
            f"output_dir={out / algorithm}",
            f"train_data={out / 'data'}",
            f"eval_data={out / 'data'}",
            f"reward={{type: service, address: '{service.address}', scorer: reward}}",
            f"reference={{address: '{service.address}', scorer: reference}}",
            f"seed={seed}",
            *(QUICK_RL if arguments.quick else ()),
            *arguments.overrides,
        ]
        began = time.perf_counter()
        result = run_online(
            algorithm, load_config(CONFIGS / f"{algorithm}.yaml", OnlineConfig, overrides)
        )
        train_seconds = time.perf_counter() - began
        reward_rpcs = service.num_rpcs("reward")

    console.rule("[bold]5. What came of it")
    summary = {
        **summarize(result),
        "reward_model_accuracy": accuracy,
        "num_pairs": num_pairs,
        "train_seconds": round(train_seconds, 1),
        "reward_rpcs": reward_rpcs,
    }
    (out / algorithm / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    page = write_report(out / algorithm)
    for name in ("proxy", "true_quality"):
        console.print(
            f"{name:14}{summary[f'{name}_before']:8.3f} -> [bold]{summary[f'{name}_after']:8.3f}[/]"
            f"   ({summary['num_prompts']} held-out prompts, sampled)"
        )
    console.print(f"report   {page}")


def service_config(reward_model: Path, policy: Path) -> dict[str, Any]:
    """Reward model, reference policy, and the true quality, which has weight 0: it is shown."""
    return {
        "engine": {"max_batch_tokens": 4096},
        "scorers": {
            "proxy": {"type": "orm", "model": str(reward_model.resolve()), "input": "text"},
            "true_quality": {
                "type": "python",
                "function": f"{(CONFIGS / 'quality.py').resolve()}:true_quality",
            },
            "reward": {"type": "sum", "of": {"proxy": 1.0, "true_quality": 0.0}},
            "reference": {"type": "causal_lm", "model": str(policy.resolve())},
        },
    }


def summarize(result: OnlineResult) -> dict[str, Any]:
    """Held-out proxy reward and true quality of sampled completions, before and after."""
    before, after = result.eval_before, result.eval_after
    return {
        "proxy_before": before["eval/sampled_reward"],
        "proxy_after": after["eval/sampled_reward"],
        "true_quality_before": before["eval/sampled_true_quality"],
        "true_quality_after": after["eval/sampled_true_quality"],
        "num_prompts": int(after["eval/num_prompts"]),
    }


if __name__ == "__main__":
    main()
