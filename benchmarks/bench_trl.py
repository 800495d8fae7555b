"""Our GRPO beside TRL's on the CPU: the same policy, prompts, group, token counts and reward.

    OMP_NUM_THREADS=2 python benchmarks/bench_trl.py --json benchmarks/results/trl-cpu.json

Each trainer is a process of its own (`grpo_workers.py`), and the two take turns, a block of steps
each, so that the machine's noise meets both alike. A step is all there is from one rollout to the
next: generation, rewards, reference, update, optimizer, log. The policy is a fresh Llama over
characters that has no end of sequence to draw, so that all completions have the same length.

Before anything is timed, ours learns from the completions that TRL drew in its first steps: losses,
KL, rewards and gradient norms of each must agree, the later ones after updates by both.
"""

from __future__ import annotations

import json
import os
import random
import select
import string
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from grpo_workers import (
    POLICY_FOLDER,
    PROMPTS_FILE,
    REPLAY_STEPS,
    SEED,
    WORKLOAD_FILE,
)
from rich.console import Console
from rich.table import Table
from timing import Stats, parser, row, write_rows

from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.run_log import read_run

LIBRARIES = ("ours", "trl")
ALPHABET = (string.digits + string.ascii_letters)[:60]
END = "<end>"
"""Ends a completion; the policy has no logit for it."""
DEADLINE_S = 180.0
"""Of an answer of a worker; its first takes imports and loading."""
TOLERANCE = {"grad_norm": 1e-4, "reward": 1e-6, "loss": 1e-6, "kl": 1e-6}
"""Largest differences that rounding explains: of the gradient's norm relative, else absolute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a step is.

    Attributes:
        name: In the table.
        hidden, layers: Of the policy.
        num_prompts, num_generations: Completions of a step are their product.
        prompt_tokens, completion_tokens: Lengths of all prompts and all completions.
        kl_coef: Weight of the KL to a frozen reference; 0 for none.
        target: How many times as fast as TRL's ours should be.
        trl_accumulation: Micro-batches of TRL's step.
        microbatch_tokens: Padded tokens of a micro-batch of ours.
        threads: Of each process.
    """

    name: str
    hidden: int = 192
    layers: int = 6
    num_prompts: int
    num_generations: int
    prompt_tokens: int
    completion_tokens: int = 32
    kl_coef: float = 0.0
    target: float
    trl_accumulation: int = 1
    microbatch_tokens: int = 16_384
    threads: int = 2


WORKLOADS = (
    Workload(name="short prompts", num_prompts=16, num_generations=8, prompt_tokens=9, target=1.4),
    Workload(
        name="256-token prompts, reference",
        num_prompts=4,
        num_generations=16,
        prompt_tokens=256,
        kl_coef=0.04,
        target=3.0,
    ),
)


class Worker:
    """A trainer in another process."""

    def __init__(self, library: str, folder: Path, threads: int) -> None:
        """Starts it; `ready` waits until it is about to take its first step."""
        self.trainer = library
        self._errors = (folder / f"{library}.log").open("w+")
        script = Path(__file__).with_name("grpo_workers.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), library, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )

    def ready(self) -> None:
        """Waits until it may be told to take steps."""
        self._read()

    def take(self, steps: int) -> dict[str, Any]:
        """Seconds of each of so many steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], DEADLINE_S)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            self._errors.seek(0)
            why = "ended" if readable else f"gave no answer in {DEADLINE_S:g} s"
            raise RuntimeError(f"{self.trainer} {why}:\n{self._errors.read()[-4000:]}")
        return dict(json.loads(line))


def prepare(folder: Path, work: Workload) -> int:
    """Writes policy, prompts and workload; returns the policy's number of parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = character_tokenizer(ALPHABET)
    vocab_size = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": END})
    torch.manual_seed(SEED)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=work.hidden,
            intermediate_size=work.hidden * 8 // 3,
            num_hidden_layers=work.layers,
            num_attention_heads=work.hidden // 32,
            num_key_value_heads=work.hidden // 32,
            max_position_embeddings=1024,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    )
    policy.save_pretrained(folder / POLICY_FOLDER)
    tokenizer.save_pretrained(folder / POLICY_FOLDER)
    rng = random.Random(SEED)
    prompts = [
        "".join(rng.choices(ALPHABET, k=work.prompt_tokens)) for _ in range(work.num_prompts)
    ]
    (folder / PROMPTS_FILE).write_text(json.dumps(prompts))
    (folder / WORKLOAD_FILE).write_text(json.dumps(asdict(work)))
    return sum(parameter.numel() for parameter in policy.parameters())


def compare(folder: Path, work: Workload) -> list[dict[str, Any]]:
    """What the two say of the steps that both took on the same completions.

    Raises:
        RuntimeError: If they differ by more than rounding.
    """
    trl = json.loads((folder / "trl.json").read_text())
    ours = read_run(folder / "ours").metrics
    names = {"loss": "loss", "grad_norm": "grad_norm", "reward": "reward"}
    if work.kl_coef:
        names["kl"] = "kl"
    rows = []
    for step in range(REPLAY_STEPS):
        for name, key in names.items():
            mine, theirs = float(ours[key][step]), float(trl[step][key])
            scale = abs(theirs) if name == "grad_norm" else 1.0
            difference = abs(mine - theirs) / scale
            rows.append({"step": step + 1, "value": name, "ours": mine, "trl": theirs})
            if not difference <= TOLERANCE[name]:
                raise RuntimeError(f"{work.name}: step {step + 1}: {name}: {mine} and {theirs}")
    return rows


def measure(work: Workload, *, rounds: int, block: int) -> list[dict[str, Any]]:
    """Rows of one workload: the values that agree, and both trainers' seconds."""
    with tempfile.TemporaryDirectory(prefix="rewardsvc-trl-") as scratch:
        folder = Path(scratch)
        num_parameters = prepare(folder, work)
        workers = {name: Worker(name, folder, work.threads) for name in LIBRARIES}
        try:
            for worker in workers.values():
                worker.ready()
            workers["trl"].take(REPLAY_STEPS)
            workers["ours"].take(REPLAY_STEPS)
            agreed = compare(folder, work)
            found = _take_turns(workers, rounds, block)
        finally:
            for worker in workers.values():
                worker.close()
    rows = []
    medians = {name: Stats.of(found[name]["wall_s"]).median_s for name in LIBRARIES}
    for name in LIBRARIES:
        cpu = Stats.of(found[name]["cpu_s"])
        rows.append(
            row(
                name,
                Stats.of(found[name]["wall_s"]),
                cpu_median_s=cpu.median_s,
                cpu_p20_s=cpu.p20_s,
                cpu_p80_s=cpu.p80_s,
                peak_mib=max(found[name]["peak_mib"]),
                times_trl=medians["trl"] / medians[name],
                workload=asdict(work),
                num_parameters=num_parameters,
                agreed=agreed,
            )
        )
    return rows


def _take_turns(
    workers: dict[str, Worker], rounds: int, block: int
) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {
        name: {"wall_s": [], "cpu_s": [], "peak_mib": []} for name in workers
    }
    for worker in workers.values():
        worker.take(1)
    for number in range(rounds):
        order = LIBRARIES if number % 2 == 0 else LIBRARIES[::-1]
        for name in order:
            answer = workers[name].take(block)
            found[name]["wall_s"] += answer["wall_s"]
            found[name]["cpu_s"] += answer["cpu_s"]
            found[name]["peak_mib"].append(answer["peak_mib"])
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """A table of seconds, and how far the values agreed."""
    table = Table(box=None)
    for heading in ("", "", "s/step", "p20", "p80", "CPU s", "peak MiB", "times TRL", "wanted"):
        table.add_column(heading, justify="right")
    for found in rows:
        work = found["workload"]
        mine = found["name"] == "ours"
        table.add_row(
            work["name"],
            found["name"],
            *(f"{found[key]:.3f}" for key in ("median_s", "p20_s", "p80_s", "cpu_median_s")),
            f"{found['peak_mib']:.0f}",
            f"{found['times_trl']:.2f}" if mine else "",
            f"{work['target']:g}" if mine else "",
        )
    console = Console(width=120)
    console.print(table)
    for found in rows:
        if found["name"] == "ours":
            console.print(f"{found['workload']['name']}: the same completions")
            for pair in found["agreed"]:
                console.print(
                    f"  step {pair['step']} {pair['value']}: {pair['ours']:.8g} {pair['trl']:.8g}"
                )


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=6, help="turns of each trainer")
    options.add_argument("--block", type=int, default=4, help="steps of a turn")
    options.add_argument("--only", type=int, choices=range(len(WORKLOADS)), help="one workload")
    options.add_argument("--threads", type=int, default=2, help="of each trainer")
    options.add_argument("--trl-accumulation", type=int, help="micro-batches of TRL's step")
    options.add_argument("--microbatch-tokens", type=int, help="of a micro-batch of ours")
    given = options.parse_args()
    works = WORKLOADS if given.only is None else (WORKLOADS[given.only],)
    rows: list[dict[str, Any]] = []
    for work in works:
        chosen = replace(
            work,
            threads=given.threads,
            trl_accumulation=given.trl_accumulation or work.trl_accumulation,
            microbatch_tokens=given.microbatch_tokens or work.microbatch_tokens,
        )
        if given.quick:
            chosen = replace(
                chosen,
                hidden=32,
                layers=2,
                num_prompts=4,
                num_generations=4,
                prompt_tokens=max(4, work.prompt_tokens // 8),
                completion_tokens=6,
            )
        rows += measure(
            chosen,
            rounds=1 if given.quick else given.rounds,
            block=1 if given.quick else given.block,
        )
    show(rows)
    write_rows(given.json, rows)


if __name__ == "__main__":
    main()
