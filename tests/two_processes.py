"""Training runs for one process and for two, and a world of two processes that carries them out.

Importable in those processes, which test modules are not. Each run is one function of its folder;
what it leaves there, weights and metrics, is the same however many processes there are.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_policies import digit_config, digit_policy

from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.distributed import PeerFailedError
from rewardsvc.policy_client.train.launch import current_world, leave_world
from rewardsvc.policy_client.train.online import CallableReward, PreemptedError, run_online
from rewardsvc.policy_client.train.online.outage import OutageError, UnavailableError
from rewardsvc.policy_client.train.online.rewards import RewardRequest, Rewards
from rewardsvc.policy_client.train.preference import PREFERENCE_TRAINERS, run_preference
from rewardsvc.policy_client.train.process_reward import PrmTrainConfig, run_prm
from rewardsvc.policy_client.train.reward_model import RewardModelConfig, run_rm
from rewardsvc.policy_client.train.selection import SELECTION_TRAINERS, run_selection
from rewardsvc.policy_client.train.sft import SftConfig, run_sft

SIZE = 2
TIMEOUT_S = 100.0

COMMON = {
    # Adam divides a gradient by its own size: with a small epsilon the rounding of one that is
    # almost nothing would move a weight as far as a large one does.
    "adam_eps": 1e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.05,
    "seed": 3,
    "device": "cpu",
}
PTX = {"data": [{"prompt": f"{d}=", "completion": str(d)} for d in range(7)], "coef": 0.1}

ONLINE: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {"num_epochs": 2, "num_minibatches": 2, "kl_coef": 0.05}),
    "token-mean": ("grpo", {"loss_aggregation": "token-mean"}),
    "seq-mean-token-mean": ("grpo", {"loss_aggregation": "seq-mean-token-mean"}),
    "seq-mean-token-sum-norm": ("grpo", {"loss_aggregation": "seq-mean-token-sum-norm"}),
    "group-mean-token-mean": ("grpo", {"loss_aggregation": "group-mean-token-mean"}),
    "dapo": ("dapo", {"num_minibatches": 2}),
    "ppo": ("ppo", {"num_minibatches": 2, "kl_target": 1.0, "ptx": {**PTX, "batch_size": 3}}),
    "ppo_penalty": ("ppo_penalty", {"num_epochs": 2}),
    "lora": ("grpo", {"lora": {"r": 2}, "kl_coef": 0.05}),
    "few prompts": ("grpo", {"num_prompts": 1, "max_new_tokens": 1}),
}
OFFLINE = ("sft", "rm", "prm", "dpo", "kto", "online_dpo")
FSDP = ("grpo", "dapo", "ppo", "lora", "few prompts", "rm", "dpo")


def graded(completions: list[str], **_: Any) -> list[float | None]:
    """Differs between almost any two completions; some have no reward."""
    scores = [sum(ord(c) * (i + 3) for i, c in enumerate(text)) % 17 for text in completions]
    return [None if score == 5 else score / 17 for score in scores]


def train(name: str, folder: Path, **fields: Any) -> None:
    """Carries out a run; a second time it goes on where the first one stopped."""
    if name in ONLINE:
        algorithm, own = ONLINE[name]
        size: dict[str, Any] = {
            "max_steps": 2,
            "num_prompts": 5,
            "num_generations": 4,
            "max_new_tokens": 5,
            "max_tokens_per_microbatch": 60,
            "seed_each_completion": True,
            "resume": True,
        }
        config = digit_config(folder, **{**COMMON, **size, **own, **fields})
        run_online(algorithm, config, reward=CallableReward(graded), **digit_policy(1))
        return
    config_class, run = _offline(name)
    batch_size = 12 // current_world().size
    run(
        config_class.model_validate(
            {
                "config": {
                    "model_type": "llama",
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "classifier_dropout": 0.0,
                },
                "tokenizer": str(folder.parent / "tokenizer"),
                "train_data": str(folder.parent / _DATA.get(name, "pairs.jsonl")),
                "eval_size": 5,
                "output_dir": folder,
                "max_steps": 2,
                "learning_rate": 1e-2,
                "per_device_train_batch_size": batch_size // 2,
                "gradient_accumulation_steps": 2,
                "resume": True,
                **COMMON,
                **fields,
            }
        )
    )


_DATA = {"prm": "steps.jsonl", "kto": "labels.jsonl"}


def _offline(name: str) -> tuple[Any, Callable[[Any], Any]]:
    if name in SELECTION_TRAINERS:
        kind = SELECTION_TRAINERS[name]

        def run(config: Any) -> None:
            size = {"num_generations": 4, "max_new_tokens": 4, "seed_each_completion": True}
            config = config.model_copy(update=size)
            run_selection(name, config, reward=CallableReward(graded))

        return kind, run
    if name in PREFERENCE_TRAINERS:
        return PREFERENCE_TRAINERS[name], lambda config: run_preference(name, config)
    trainers: Mapping[str, tuple[Any, Callable[[Any], Any]]] = {
        "sft": (SftConfig, run_sft),
        "rm": (RewardModelConfig, run_rm),
        "prm": (PrmTrainConfig, run_prm),
    }
    return trainers[name]


def write_data(folder: Path) -> None:
    """What the offline runs learn from: words of the letters a, b, c and x."""
    character_tokenizer("abcx>\n").save_pretrained(folder / "tokenizer")
    words = ["abx"[: 1 + n % 3] * (1 + n % 4) + "c" * (n % 5) for n in range(40)]
    rows: dict[str, list[dict[str, Any]]] = {"pairs": [], "steps": [], "labels": []}
    for n, word in enumerate(words):
        prompt = f"{word[:2]}>"
        good, bad = word + "x", word[::-1] + "cc"
        rows["pairs"].append(
            {"prompt": prompt, "completion": word, "chosen": good, "rejected": bad}
        )
        steps = [word, good, bad][: 1 + n % 3]
        labels = [(n + k) % 2 == 0 for k in range(len(steps))]
        rows["steps"].append({"prompt": prompt, "completions": steps, "labels": labels})
        rows["labels"].append({"prompt": prompt, "completion": word, "label": n % 3 == 0})
    for name, found in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text)


class _Breaks:
    """A reward source that breaks in the last process, in the given way."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def score(self, request: RewardRequest) -> Rewards:
        if current_world().rank == SIZE - 1:
            raise self._error
        return CallableReward(graded).score(request)


def _failing(folder: Path) -> None:
    """What each process hears of a failure in one; written down by both."""
    heard: list[str] = []
    for number, error in enumerate((UnavailableError("gone"), ZeroDivisionError("a bug"))):
        config = digit_config(
            folder / str(number), max_steps=2, num_prompts=4, max_service_outage_s=0.0
        )
        try:
            run_online("grpo", config, reward=_Breaks(error), **digit_policy())
        except (OutageError, PeerFailedError, ZeroDivisionError) as caught:
            heard.append(f"{type(caught).__name__}: {caught}")
    (folder / f"process-{current_world().rank}.json").write_text(json.dumps(heard))


class _Preempting:
    """A reward source in whose n-th call the last process is sent SIGTERM."""

    def __init__(self, calls: int) -> None:
        self._calls = calls

    def score(self, request: RewardRequest) -> Rewards:
        self._calls -= 1
        if self._calls == 0 and current_world().rank == SIZE - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return CallableReward(graded).score(request)


def _interrupted(folder: Path, **fields: Any) -> None:
    """The run "grpo", stopped in the middle of its second step, and gone on with."""
    algorithm, own = ONLINE["grpo"]
    size = {"num_prompts": 5, "num_generations": 4, "max_new_tokens": 5, "max_steps": 2}
    config = digit_config(
        folder,
        **{**COMMON, **size, **own, "max_tokens_per_microbatch": 60, "resume": True, **fields},
    )
    try:
        run_online(algorithm, config, reward=_Preempting(2), **digit_policy(1))
    except PreemptedError as error:
        if current_world().is_main:
            (folder / "preempted").write_text(str(error))
    run_online(algorithm, config, reward=CallableReward(graded), **digit_policy(1))


def jobs() -> dict[str, Callable[[Path], None]]:
    """What the two processes do, by name of the folder that they do it in."""
    made: dict[str, Callable[[Path], None]] = {}
    for name in (*ONLINE, *OFFLINE):
        made[f"ddp {name}"] = lambda folder, name=name: train(name, folder)  # type: ignore[misc]
    for name in FSDP:
        made[f"fsdp {name}"] = lambda folder, name=name: train(name, folder, fsdp=True)  # type: ignore[misc]
    made["ddp interrupted"] = _interrupted
    made["fsdp interrupted"] = lambda folder: _interrupted(folder, fsdp=True)
    made["failing"] = _failing
    return made


def _work(rank: int, folder: str, wanted: list[str]) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    world = current_world()
    every = jobs()
    try:
        for name in wanted:
            target = Path(folder) / name
            target.mkdir(exist_ok=True)
            failed = False
            try:
                every[name](target)
            except Exception:
                (target / f"error-{rank}.txt").write_text(traceback.format_exc())
                failed = True
            world.any(failed)  # a run that has failed in one process only ends here
    finally:
        leave_world()


def run_in_two(folder: Path, wanted: list[str]) -> None:
    """Does some of the `jobs` in two processes; what goes wrong lies in `error-*.txt` there."""
    write_data(folder)
    context = mp.start_processes(
        _work, args=(str(folder), wanted), nprocs=SIZE, join=False, start_method="spawn"
    )
    assert context is not None
    try:
        while not context.join(timeout=TIMEOUT_S):
            pass
    finally:
        for process in context.processes:
            process.kill()
            process.join()
