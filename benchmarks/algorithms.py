"""Every online algorithm on one small task: does it end above where it began?

    OMP_NUM_THREADS=1 python benchmarks/algorithms.py                 # all rows that are missing
    OMP_NUM_THREADS=1 python benchmarks/algorithms.py --only dapo     # one algorithm
    python benchmarks/algorithms.py --show                            # the table and the curves

The task is the demo's sorting, smaller: five digits in, the same five in order and apart out, so
that a completion has steps. A Llama of 0.1M parameters is warmed up on solutions until some of what
it samples is right, once for each seed, and each algorithm goes on from there with the same budget
of completions. A row is one algorithm and one seed; each is written when it is done, so that the
script can be stopped and started again. Rewards are exact match, in process.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learning import Study, panels, thinned

from rewardsvc.policy_client.algorithms.presets import PRESETS
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.online import CallableReward, OnlineConfig, run_online
from rewardsvc.policy_client.train.run_log import read_run
from rewardsvc.policy_client.train.sft import SftConfig, run_sft

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "algorithms-cpu.json"
FIGURE = HERE.parent / "docs" / "images" / "algorithms.svg"
NUM_DIGITS = 5
SEPARATOR = " "
MAX_NEW_TOKENS = 2 * NUM_DIGITS
NUM_COMPLETIONS = 128
NUM_STEPS = 120
NUM_EVAL = 500
COLD_START_STEPS = 90
CURVE_POINTS = 24

OVERRIDES: dict[str, dict[str, Any]] = {
    # A right answer has all ten tokens: a penalty on the last two of them would forbid it.
    "dapo": {"overlong_cache_tokens": 0},
    # A target for a policy that must move a long way, over a run of 15,000 completions.
    "ppo_adaptive_kl": {"kl_coef": 0.05, "kl_target": 10.0, "kl_horizon": 2000},
    # With a hundredth of a nat per token the policy hardly moves in 120 steps.
    "ppo_penalty": {"kl_target": 0.03},
}
"""What is changed in a row beside the budget; everything else is the row as it is."""


def problem(rng: random.Random) -> dict[str, str]:
    """Five digits, and the same in order."""
    digits = rng.choices("0123456789", k=NUM_DIGITS)
    answer = SEPARATOR.join(sorted(digits))
    return {"prompt": f"{''.join(digits)}>", "completion": answer, "answer": answer}


def held_out(row: dict[str, str]) -> bool:
    """A tenth of all sets of digits, whatever their order."""
    return random.Random(row["answer"]).random() < 0.1


def problems(seed: str, count: int, *, test: bool) -> list[dict[str, str]]:
    """`count` problems of one side of the split."""
    rng, rows = random.Random(seed), []
    while len(rows) < count:
        row = problem(rng)
        if held_out(row) == test:
            rows.append(row)
    return rows


def exact(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1 for the answer."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def process(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[Any]:
    """For each digit, whether it is the right one at its place; one too many or few is wrong."""
    rows: list[Any] = []
    for text, right in zip(completions, answer, strict=True):
        found = [part for part in text.split(SEPARATOR) if part.strip()]
        wanted = right.split(SEPARATOR)
        steps = [
            float(number < len(wanted) and part == wanted[number])
            for number, part in enumerate(found)
        ]
        if steps and len(found) != len(wanted):
            steps[-1] = 0.0
        rows.append(steps or None)
    return rows


def cold_start(folder: Path, seed: int, *, steps: int) -> Path:
    """A policy that sometimes succeeds; made once for each seed."""
    made = folder / f"policy-{seed}"
    if (made / "final").exists():
        return made / "final"
    tokenizer = folder / "tokenizer"
    character_tokenizer("0123456789> ").save_pretrained(tokenizer)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    rows = problems(f"warm {seed}", 128 * steps, test=False)
    (made / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SftConfig.model_validate(
        {
            "config": {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 172,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32,
                "tie_word_embeddings": False,
            },
            "tokenizer": tokenizer.as_posix(),
            "train_data": (made / "train.jsonl").as_posix(),
            "output_dir": made,
            "seed": seed,
            "max_steps": steps,
            "per_device_train_batch_size": 128,
            "max_length": 32,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 10,
            "adam_beta2": 0.95,
            "group_by_length": False,
            "save_steps": 10_000,
            "device": "cpu",
        }
    )
    run_sft(config)
    return made / "final"


def run_row(algorithm: str, seed: int, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Trains one algorithm from one seed's cold start."""
    policy = cold_start(folder, seed, steps=5 if quick else COLD_START_STEPS)
    spec = PRESETS[algorithm]
    generations = 1 if spec.num_generations == 1 else 8
    output = folder / f"{algorithm}-{seed}"
    shutil.rmtree(output, ignore_errors=True)
    config = OnlineConfig.model_validate(
        {
            "model": policy.as_posix(),
            "output_dir": output,
            "train_data": problems(f"train {seed}", 20_000 if not quick else 200, test=False),
            "eval_data": problems("test", NUM_EVAL if not quick else 20, test=True),
            "num_eval_prompts": NUM_EVAL,
            "eval_steps": 10_000,
            "save_steps": 10_000,
            "max_steps": NUM_STEPS if not quick else 2,
            "num_prompts": NUM_COMPLETIONS // generations,
            "num_generations": generations,
            "max_new_tokens": MAX_NEW_TOKENS,
            "learning_rate": 4e-4,
            "warmup_steps": 10,
            "adam_beta2": 0.99,
            "seed": seed,
            "step_separator": SEPARATOR,
            "max_missing_reward_share": 1.0,
            "device": "cpu",
            **OVERRIDES.get(algorithm, {}),
        }
    )
    steps = spec.process_weight > 0
    source = CallableReward(exact, process, weights=[0.0, 1.0]) if steps else CallableReward(exact)
    if steps and spec.outcome_weight > 0:
        source = CallableReward(exact, process, weights=[1.0, 0.0])
    began, cpu = time.perf_counter(), time.process_time()
    result = run_online(algorithm, config, reward=source)
    name = "rewards/exact/mean"
    curve = [value for value in read_run(output).metrics[name] if value == value]
    return {
        "algorithm": algorithm,
        "seed": seed,
        "sampled_before": result.eval_before["eval/sampled_accuracy"],
        "sampled_after": result.eval_after["eval/sampled_accuracy"],
        "greedy_before": result.eval_before["eval/greedy_accuracy"],
        "greedy_after": result.eval_after["eval/greedy_accuracy"],
        "curve": thinned(curve, CURVE_POINTS),
        "num_steps": result.num_steps,
        "num_skipped_steps": result.num_skipped_steps,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line an algorithm, numbers are means over its seeds; then where each ended."""
    lines = [
        "| algorithm | sampled | of each seed | greedy | seconds |",
        "|---|---|---|---|---|",
    ]
    for algorithm in PRESETS:
        mine = sorted(
            (row for row in rows if row["algorithm"] == algorithm), key=lambda row: row["seed"]
        )
        if mine:
            mean = {
                key: statistics.fmean(row[key] for row in mine)
                for key in mine[0]
                if key.endswith(("before", "after", "seconds"))
            }
            each = ", ".join(f"{row['sampled_after']:.0%}" for row in mine)
            lines.append(
                f"| `{algorithm}` | {mean['sampled_before']:.1%} → {mean['sampled_after']:.1%} | "
                f"{each} | {mean['greedy_before']:.1%} → {mean['greedy_after']:.1%} | "
                f"{mean['seconds']:.0f} |"
            )
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> str:
    """A panel an algorithm: share of right completions over the run."""
    curves = {
        name: [(row["seed"], row["curve"]) for row in rows if row["algorithm"] == name]
        for name in PRESETS
    }
    shown = {name: lines for name, lines in curves.items() if lines}
    return panels(shown, steps=dict.fromkeys(shown, NUM_STEPS))


STUDY = Study(
    kind="algorithm",
    names=tuple(PRESETS),
    scores=("sampled_before", "sampled_after"),
    run_row=run_row,
    table=table,
    figure=figure,
    results=RESULTS,
    picture=FIGURE,
    folder=Path("runs") / "algorithms",
)

if __name__ == "__main__":
    STUDY.main(__doc__.splitlines()[0])
