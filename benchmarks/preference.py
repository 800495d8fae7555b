"""Every loss on preferences, of policies and of reward models: does held-out accuracy rise?

    OMP_NUM_THREADS=1 python benchmarks/preference.py               # all rows that are missing
    OMP_NUM_THREADS=1 python benchmarks/preference.py --only dpo    # one loss
    python benchmarks/preference.py --show                          # the table and the curves

The task is in `preference_task.py`: pairs that differ in whether digits go up or down, of which
judges take some by length alone. A Llama of 0.1M parameters is taught to write both, once for each
seed, and each loss goes on from there, with its own defaults. A row is one loss and one seed; each
is written when it is done, so that the script can be stopped and started again.

All rows are measured alike, on held-out pairs that no judge has spoiled: the share in which the
right completion has the higher implicit reward, ties half. It is the log ratio to the policy at the
start for losses with a reference, which starts at one half by construction; and the log-prob
that the loss compares for those without one. Reward models are measured by their reward. A policy
is also asked for completions: the share that follows the sign says whether it has learned to do
what it has learned to tell apart.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import preference_task as task
import torch
from learning import Study, panels
from safetensors.torch import load_model

from rewardsvc.policy_client.train.data import load_examples
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.models import load_policy
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.preference import PREFERENCE_TRAINERS, run_preference
from rewardsvc.policy_client.train.preference.data import PairRow, RowReader
from rewardsvc.policy_client.train.preference.logps import CompletionLogps, completion_lengths
from rewardsvc.policy_client.train.reward_model import RewardModelConfig, run_rm
from rewardsvc.policy_client.train.run_log import read_run
from rewardsvc.policy_client.train.sft import SftConfig, run_sft

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "preference-cpu.json"
FIGURE = HERE.parent / "docs" / "images" / "preference.svg"
COLD_START_STEPS = 200
COLD_START_BATCH = 128
BATCH = 32
CURVE_POINTS = 12
NUM_HELD_OUT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long and how fast a model learns.

    Attributes:
        num_steps: Of `BATCH` rows.
        learning_rate: At its peak.
    """

    num_steps: int
    learning_rate: float


POLICY = Budget(num_steps=120, learning_rate=2e-4)
REWARD_MODEL = Budget(num_steps=300, learning_rate=2e-3)
"""More, since the head is new and one number a completion is all that there is to learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        trainer: As in `rewardsvc train`.
        rows: What it learns from.
        compares: What held-out pairs are compared by.
        fields: What differs from the trainer's defaults.
        margins: Whether it is told by how much a completion is better.
    """

    trainer: str
    rows: Literal["pairs", "rankings", "labelled", "completed"] = "pairs"
    compares: Literal["log ratio", "log-prob", "mean log-prob", "reward"] = "log ratio"
    fields: Mapping[str, Any] = field(default_factory=dict)
    margins: bool = False

    @property
    def budget(self) -> Budget:
        """That of what it trains."""
        return REWARD_MODEL if self.trainer == "rm" else POLICY


VARIANTS: Mapping[str, Variant] = {
    "dpo": Variant(trainer="dpo"),
    "cdpo": Variant(trainer="dpo", fields={"label_smoothing": 0.15}),
    "r-dpo": Variant(trainer="dpo", fields={"length_coefficient": 0.02}),
    "dpo + likelihood": Variant(trainer="dpo", fields={"sft_coefficient": 1.0}),
    "ipo": Variant(trainer="ipo"),
    "simpo": Variant(trainer="simpo", compares="mean log-prob"),
    "orpo": Variant(trainer="orpo", compares="mean log-prob"),
    "slic": Variant(trainer="slic", compares="log-prob"),
    "sppo": Variant(trainer="sppo"),
    "spin": Variant(
        trainer="spin", rows="completed", fields={"max_new_tokens": task.MAX_NEW_TOKENS}
    ),
    "kto": Variant(trainer="kto", rows="labelled"),
    "rrhf": Variant(trainer="rrhf", rows="rankings", compares="mean log-prob"),
    "rm: bradley-terry": Variant(trainer="rm", compares="reward"),
    "rm: margin": Variant(trainer="rm", compares="reward", margins=True),
    "rm: label smoothing": Variant(
        trainer="rm", compares="reward", fields={"label_smoothing": 0.15}
    ),
    "rm: centering": Variant(
        trainer="rm", compares="reward", fields={"center_rewards_coefficient": 0.01}
    ),
    "rm: length": Variant(trainer="rm", compares="reward", fields={"length_coefficient": 0.1}),
    "rm: thurstone": Variant(trainer="rm", compares="reward", fields={"loss": "thurstone"}),
    "rm: plackett-luce": Variant(
        trainer="rm", rows="rankings", compares="reward", fields={"loss": "plackett_luce"}
    ),
}


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.as_posix()


def cold_start(folder: Path, seed: int, *, steps: int) -> Path:
    """A policy that writes both orders, whatever the sign; made once for each seed."""
    made = folder / f"policy-{seed}"
    if (made / "final").exists():
        return made / "final"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    tokenizer = made / "tokenizer"
    character_tokenizer(task.ALPHABET).save_pretrained(tokenizer)
    rows = task.demonstrations(f"warm {seed}", COLD_START_BATCH * steps)
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
            "train_data": written(made / "train.jsonl", rows),
            "output_dir": made,
            "seed": seed,
            "max_steps": steps,
            "per_device_train_batch_size": COLD_START_BATCH,
            "max_length": task.LONGEST,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 10,
            "adam_beta2": 0.95,
            "save_steps": 10_000,
            "device": "cpu",
        }
    )
    run_sft(config)
    return made / "final"


def run_row(name: str, seed: int, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Trains one loss from one seed's cold start."""
    variant = VARIANTS[name]
    policy = cold_start(folder, seed, steps=5 if quick else COLD_START_STEPS)
    output = folder / f"{name.replace(': ', '-').replace(' ', '-')}-{seed}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    budget = variant.budget
    num_steps = 2 if quick else budget.num_steps
    num_held_out = 20 if quick else NUM_HELD_OUT
    held_out = written(output / "test.jsonl", task.pairs("test", num_held_out, test=True))
    fields = {
        "model": policy.as_posix(),
        "train_data": written(
            output / "train.jsonl", training_rows(variant, f"train {seed}", num_steps * BATCH)
        ),
        "output_dir": output / "run",
        "seed": seed,
        "max_steps": num_steps,
        "per_device_train_batch_size": BATCH,
        "max_length": task.LONGEST,
        "learning_rate": budget.learning_rate,
        "warmup_steps": 5,
        "save_steps": max(1, num_steps // CURVE_POINTS),
        "save_total_limit": num_steps,
        "device": "cpu",
        **variant.fields,
    }
    began, cpu = time.perf_counter(), time.process_time()
    run = _reward_model if variant.trainer == "rm" else _policy
    measured = run(variant, fields, held_out)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    shutil.rmtree(output)
    return {
        "loss": name,
        "seed": seed,
        "before": measured["curve"][0],
        "after": measured["curve"][-1],
        **measured,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }


def training_rows(variant: Variant, seed: str, count: int) -> list[dict[str, Any]]:
    """What a variant learns from; only the one with margins is told of them."""
    if variant.rows == "rankings":
        return task.rankings(seed, count, test=False)
    if variant.rows == "labelled":
        return task.labelled(seed, count)
    if variant.rows == "completed":
        return task.completed(seed, count)
    rows = task.pairs(seed, count, test=False)
    if variant.margins:
        return rows
    return [{key: row[key] for key in row if key != "margin"} for row in rows]


def _reward_model(variant: Variant, fields: dict[str, Any], held_out: str) -> dict[str, Any]:
    config = RewardModelConfig.model_validate(
        {**fields, "eval_data": held_out, "eval_steps": fields["save_steps"]}
    )
    run_rm(config)
    logged = read_run(config.output_dir).metrics["eval_accuracy"]
    return {"curve": [round(value, 4) for value in logged if value == value]}


def _policy(variant: Variant, fields: dict[str, Any], held_out: str) -> dict[str, Any]:
    config = PREFERENCE_TRAINERS[variant.trainer].model_validate(fields)
    model, tokenizer = load_policy(config)
    examples = load_examples(held_out)
    rows = RowReader(tokenizer, config).pairs(examples)
    prompts = [tokenizer.encode(row.prompt, add_special_tokens=False) for row in examples]
    asked = task.questions("test", len(rows), test=True)
    logps = CompletionLogps(model, pad_token_id=tokenizer.pad_token_id)
    start = _both(logps, rows)
    engine = TransformersRollout(
        model, eos_ids=(tokenizer.eos_token_id,), pad_id=tokenizer.pad_token_id
    )

    def follows() -> float:
        made = engine.generate(
            prompts,
            1,
            SamplingParams(max_new_tokens=task.MAX_NEW_TOKENS),
            torch.Generator().manual_seed(0),
        )
        texts = tokenizer.batch_decode(made.completion_lists(), skip_special_tokens=True)
        right = [task.is_right(text, one) for text, one in zip(texts, asked, strict=True)]
        return round(statistics.fmean(right), 4)

    curve, follows_before = [_accuracy(variant, start, start, rows)], follows()
    run_preference(variant.trainer, config)
    for checkpoint in sorted(config.output_dir.glob("checkpoint-*")):
        load_model(model, checkpoint / "model.safetensors")
        curve.append(_accuracy(variant, _both(logps, rows), start, rows))
    return {"curve": curve, "follows_before": follows_before, "follows_after": follows()}


def _both(logps: CompletionLogps, rows: Sequence[PairRow]) -> torch.Tensor:
    """[2, N]: log-probs of right and of wrong completions."""
    return torch.stack(
        [
            logps.in_batches([row.chosen for row in rows], NUM_HELD_OUT),
            logps.in_batches([row.rejected for row in rows], NUM_HELD_OUT),
        ]
    )


def _accuracy(
    variant: Variant, now: torch.Tensor, start: torch.Tensor, rows: Sequence[PairRow]
) -> float:
    if variant.compares == "log ratio":
        now = now - start
    elif variant.compares == "mean log-prob":
        lengths = [
            completion_lengths([row.chosen for row in rows], like=now),
            completion_lengths([row.rejected for row in rows], like=now),
        ]
        now = now / torch.stack(lengths)
    right, wrong = now
    return round(float(((right > wrong).float() + 0.5 * (right == wrong)).mean()), 4)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line a loss, numbers are means over its seeds; then where each ended."""
    lines = [
        "| loss | by | held-out pairs | of each seed | follow the sign | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, variant in VARIANTS.items():
        mine = sorted((row for row in rows if row["loss"] == name), key=lambda row: row["seed"])
        if not mine:
            continue
        mean = {
            key: statistics.fmean(row[key] for row in mine)
            for key in mine[0]
            if isinstance(mine[0][key], float)
        }
        follows = (
            f"{mean['follows_before']:.1%} → {mean['follows_after']:.1%}"
            if "follows_before" in mean
            else ""
        )
        each = ", ".join(f"{row['after']:.0%}" for row in mine)
        lines.append(
            f"| `{name}` | {variant.compares} | {mean['before']:.1%} → {mean['after']:.1%} | "
            f"{each} | {follows} | "
            f"{mean['seconds']:.0f} |"
        )
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> str:
    """A panel a loss: accuracy on held-out pairs over the run."""
    curves = {
        name: [(row["seed"], row["curve"]) for row in rows if row["loss"] == name]
        for name in VARIANTS
    }
    return panels(
        {name: lines for name, lines in curves.items() if lines},
        steps={name: variant.budget.num_steps for name, variant in VARIANTS.items()},
    )


STUDY = Study(
    kind="loss",
    names=tuple(VARIANTS),
    scores=("before", "after"),
    run_row=run_row,
    table=table,
    figure=figure,
    results=RESULTS,
    picture=FIGURE,
    folder=Path("runs") / "preference",
)

if __name__ == "__main__":
    STUDY.main(__doc__.splitlines()[0])
