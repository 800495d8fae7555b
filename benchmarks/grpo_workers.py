"""One GRPO trainer in a process of its own, which takes steps when it is told to.

    python benchmarks/grpo_workers.py ours|trl FOLDER

`bench_trl.py` starts two of these and lets them take turns. FOLDER holds `workload.json`, the
policy with its tokenizer, and the prompts. A line with a number on standard input grants so many
steps; a line of JSON with what each cost answers it on standard output. A step lasts from the start
of its rollout to the start of the next one, so that logging and bookkeeping are in it.

TRL notes the completions of its first steps. Ours replays them in its own first steps: then both
have learned from the same completions, and losses and gradients can be compared.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

REPLAY_STEPS = 3
REPLAY_FILE = "rollouts.jsonl"
WORKLOAD_FILE = "workload.json"
PROMPTS_FILE = "prompts.json"
POLICY_FOLDER = "policy"
LEARNING_RATE = 1e-4
ADAM_BETA2 = 0.999
SEED = 0
DIGITS = frozenset("0123456789")
ENDLESS = 1_000_000
"""More steps than anybody asks for; the learning rate is constant."""


class FinishedError(Exception):
    """No more steps are wanted."""


class Gate:
    """Stands between two steps: times the one before, and waits until the next is granted."""

    def __init__(self) -> None:
        """Keeps standard output for itself: libraries that print do so on standard error."""
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._granted = 0
        self._began: tuple[float, float] | None = None
        self._seconds: list[tuple[float, float]] = []

    def step(self) -> None:
        """To be called where a step begins.

        Raises:
            FinishedError: If there is nobody left to ask for one.
        """
        now = time.perf_counter(), time.process_time()
        if self._began is not None:
            self._seconds.append((now[0] - self._began[0], now[1] - self._began[1]))
        if self._granted == 0:
            self._answer()
            self._granted = int(sys.stdin.readline() or 0)
            if self._granted == 0:
                raise FinishedError
        self._granted -= 1
        self._began = time.perf_counter(), time.process_time()

    def _answer(self) -> None:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reply = {
            "wall_s": [wall for wall, _ in self._seconds],
            "cpu_s": [cpu for _, cpu in self._seconds],
            "peak_mib": peak_kib / 1024,
        }
        self._seconds, self._began = [], None
        print(json.dumps(reply), file=self._replies, flush=True)


def reward(completions: Sequence[str], **_: Any) -> list[float]:
    """The share of characters that are digits."""
    return [sum(c in DIGITS for c in text) / max(len(text), 1) for text in completions]


def train_ours(folder: Path, work: dict[str, Any]) -> NoReturn:
    """`run_online` with an engine that replays, and then decodes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rewardsvc.policy_client.train.online import CallableReward, OnlineConfig, run_online
    from rewardsvc.policy_client.train.online.build import eos_ids
    from rewardsvc.policy_client.train.online.decode import TransformersRollout
    from rewardsvc.policy_client.train.online.forward import PolicyForward
    from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout
    from rewardsvc.policy_client.train.online.sampling import SamplingParams
    from rewardsvc.policy_client.train.online.sequences import Sequences

    policy = AutoModelForCausalLM.from_pretrained(folder / POLICY_FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / POLICY_FOLDER)
    pad_id = int(tokenizer.pad_token_id)
    gate = Gate()
    steps: list[dict[tuple[int, ...], list[list[int]]]] = []

    class Engine:
        """A `RolloutEngine`."""

        def __init__(self) -> None:
            self._plain = TransformersRollout(
                policy, eos_ids=eos_ids(policy, tokenizer), pad_id=pad_id
            )

        def generate(
            self,
            prompt_ids: Sequence[Sequence[int]],
            num_return: int,
            sampling: SamplingParams,
            generator: torch.Generator | None = None,
        ) -> Rollout:
            """What TRL drew for these prompts, while there is any."""
            gate.step()
            if not steps:
                steps.extend(read_replay(folder, tokenizer))
                steps.append({})
            if not steps[0]:
                return self._plain.generate(prompt_ids, num_return, sampling, generator)
            drawn = steps.pop(0)
            prompts = [tuple(ids) for ids in prompt_ids]
            ids = torch.tensor([row for prompt in prompts for row in drawn[prompt]])
            rollout = Rollout(
                prompt_ids=tuple(prompt for prompt in prompts for _ in range(num_return)),
                completion_ids=ids,
                completion_mask=torch.ones_like(ids, dtype=torch.bool),
                logprobs=torch.zeros(ids.shape),
                draw_logprobs=torch.zeros(ids.shape),
                finish=(FinishReason.LENGTH,) * len(ids),
            )
            with torch.no_grad():
                logprobs = PolicyForward(policy)(Sequences.of(rollout, pad_id=pad_id)).logprobs
            rollout.logprobs.copy_(logprobs)
            rollout.draw_logprobs.copy_(logprobs)
            return rollout

    config = OnlineConfig.model_validate(
        {
            "model": (folder / POLICY_FOLDER).as_posix(),
            "output_dir": folder / "ours",
            "compat": "trl",
            "train_data": [{"prompt": text} for text in read_prompts(folder)],
            "num_prompts": work["num_prompts"],
            "num_generations": work["num_generations"],
            "max_new_tokens": work["completion_tokens"],
            "max_tokens_per_microbatch": work["microbatch_tokens"],
            "kl_coef": work["kl_coef"],
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "adam_beta2": ADAM_BETA2,
            "max_steps": ENDLESS,
            "save_steps": ENDLESS,
            "seed": SEED,
            "device": "cpu",
        }
    )
    run_online(
        "grpo",
        config,
        reward=CallableReward(reward),
        policy=policy,
        tokenizer=tokenizer,
        engine=Engine(),
    )
    raise AssertionError("the run ended before it was told to")


def train_trl(folder: Path, work: dict[str, Any]) -> NoReturn:
    """TRL's trainer.

    Its documentation's ways to speed up that a CPU has none of: vLLM, its kernels, and continuous
    batching. Where its defaults would cost time here they are changed: activations are not computed
    again, and the arithmetic is float32, as ours.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    gate = Gate()
    kept: list[list[dict[str, Any]]] = []
    found: list[dict[str, float]] = []

    def noting(
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        **_: Any,
    ) -> list[float]:
        if len(kept) < REPLAY_STEPS:
            pairs = zip(prompts, completion_ids, strict=True)
            kept.append([{"prompt": prompt, "ids": list(ids)} for prompt, ids in pairs])
            if len(kept) == REPLAY_STEPS:
                lines = [json.dumps(step) + "\n" for step in kept]
                (folder / REPLAY_FILE).write_text("".join(lines))
        return reward(completions)

    class Turns(TrainerCallback):
        """Waits before each step; has the first ones logged one by one."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            gate.step()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step <= REPLAY_STEPS:
                control.should_log = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            if state.global_step <= REPLAY_STEPS:
                found.append(dict(logs))
                (folder / "trl.json").write_text(json.dumps(found))

    num_completions = work["num_prompts"] * work["num_generations"]
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=num_completions // work["trl_accumulation"],
        gradient_accumulation_steps=work["trl_accumulation"],
        num_generations=work["num_generations"],
        max_completion_length=work["completion_tokens"],
        beta=work["kl_coef"],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=ADAM_BETA2,
        max_steps=ENDLESS,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=SEED,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = GRPOTrainer(
        model=str(folder / POLICY_FOLDER),
        reward_funcs=noting,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in read_prompts(folder)]),
        callbacks=[Turns()],
    )
    trainer.train()
    raise AssertionError("the run ended before it was told to")


def read_prompts(folder: Path) -> list[str]:
    """The prompts, all of which each step has."""
    return list(json.loads((folder / PROMPTS_FILE).read_text()))


def read_replay(folder: Path, tokenizer: Any) -> list[dict[tuple[int, ...], list[list[int]]]]:
    """Of each of TRL's first steps, the completions of each prompt."""
    steps = []
    for line in (folder / REPLAY_FILE).read_text().splitlines():
        drawn: dict[tuple[int, ...], list[list[int]]] = {}
        for row in json.loads(line):
            prompt = tuple(tokenizer(row["prompt"])["input_ids"])
            drawn.setdefault(prompt, []).append(row["ids"])
        steps.append(drawn)
    return steps


def main() -> None:
    """Trains until standard input ends."""
    library, folder = sys.argv[1], Path(sys.argv[2])
    work = json.loads((folder / WORKLOAD_FILE).read_text())
    torch.set_num_threads(work["threads"])
    try:
        {"ours": train_ours, "trl": train_trl}[library](folder, work)
    except FinishedError:
        return


if __name__ == "__main__":
    main()
