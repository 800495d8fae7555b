"""Interrupted anywhere and resumed equals uninterrupted, bit for bit.

Also in the middle of reusing a rollout, between the micro-batches of one optimiser step, and with
everything that has a memory: KL rules, moving baseline, running rewards, multipliers, PTX order.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policies import ROWS, digit_config, digit_policy
from transformers import AutoModelForCausalLM

from rewardsvc.policy_client.train.online import (
    CallableReward,
    OnlineResult,
    PreemptedError,
    run_online,
)
from rewardsvc.policy_client.train.online.saving import InHand, Saver


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def graded(completions: list[str], **_: Any) -> list[float]:
    """Differs between almost any two completions, so that every step has something to learn."""
    return [sum(ord(c) * (i + 3) for i, c in enumerate(text)) % 17 / 17 for text in completions]


def brevity(completions: list[str], **_: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


OBJECTIVES = {
    "rewards": {
        "graded": {"normalise": "running"},
        "brevity": {"weight": 0.1, "normalise": "batch"},
    },
    "constraints": {"length": {"at_most": 1.5, "learning_rate": 0.5}},
}

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo, reused": ("grpo", {"num_epochs": 2, "num_minibatches": 2, "kl_coef": 0.05}),
    "ppo, adaptive KL": ("ppo", {"num_epochs": 2, "num_minibatches": 2, "kl_target": 1.0}),
    "ppo_penalty": ("ppo_penalty", {"num_epochs": 2}),
    "reinforce, moving baseline": ("reinforce", {"num_minibatches": 3}),
    "dapo, dynamic sampling": ("dapo", {"num_minibatches": 2, "clip_eps_high": 0.28}),
    "objectives and constraints": ("rloo", {"objectives": OBJECTIVES, "num_minibatches": 2}),
    "ptx": (
        "grpo",
        {
            "num_minibatches": 2,
            "ptx": {
                "data": [{"prompt": f"{d}=", "completion": str(d)} for d in range(7)],
                "coef": 0.1,
                "batch_size": 3,
            },
        },
    ),
    "importance correction": (
        "grpo",
        {"num_epochs": 2, "importance_sampling": "token-truncate"},
    ),
}


def train(algorithm: str, folder: Path, reward: Any = None, **fields: Any) -> OnlineResult:
    small = {
        "num_prompts": 4,
        "num_generations": 4,
        "max_steps": 2,
        "max_tokens_per_microbatch": 30,
        "save_steps": 1,
    }
    source = reward or CallableReward(graded, brevity, weights=[1.0, 0.0])
    config = digit_config(folder, **{**small, **fields})
    return run_online(algorithm, config, reward=source, **digit_policy())


def weights(result: OnlineResult) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(result.model_dir).state_dict())


def logged(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Steps and their metrics, without what a clock measures."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["metrics"].pop("step_time", None)
    return [(line["step"], line["metrics"]) for line in lines]


def assert_same(one: OnlineResult, other: OnlineResult, folders: tuple[Path, Path]) -> None:
    first, second = weights(one), weights(other)
    assert all(first[name].equal(second[name]) for name in first)
    assert logged(folders[0]) == logged(folders[1])


def kill_after(monkeypatch: pytest.MonkeyPatch, num_saves: int) -> list[InHand | None]:
    """Makes the process die after so many checkpoints; gives what they held, as they come."""
    saved: list[InHand | None] = []
    original = Saver.save

    def save(
        self: Saver, step: int, document: dict[str, Any], in_hand: InHand | None = None
    ) -> None:
        original(self, step, document, in_hand)
        saved.append(in_hand)
        if len(saved) == num_saves:
            raise Killed

    monkeypatch.setattr(Saver, "save", save)
    return saved


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_a_micro_step_goes_on_as_if_nothing_had_happened(
    name: str, tmp_path: Path
) -> None:
    algorithm, fields = RUNS[name]
    whole = train(algorithm, tmp_path / "whole", **fields)
    with pytest.MonkeyPatch.context() as patch:
        all_saves = kill_after(patch, 0)
        train(algorithm, tmp_path / "counted", save_micro_steps=1, **fields)
    middles = [number for number, held in enumerate(all_saves, start=1) if held is not None]
    assert len(middles) >= 3
    for number in {middles[len(middles) // 2], middles[-1]}:
        folder = tmp_path / f"killed-{number}"
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, number)
            with pytest.raises(Killed):
                train(algorithm, folder, save_micro_steps=1, **fields)
        resumed = train(algorithm, folder, resume=True, **fields)
        assert_same(whole, resumed, (tmp_path / "whole", folder))


def test_gradients_gathered_so_far_and_the_rollout_are_in_the_checkpoint_without_pickle(
    tmp_path: Path,
) -> None:
    from safetensors import safe_open

    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            train("ppo", tmp_path, save_micro_steps=1)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-00000000"
    assert {path.suffix for path in checkpoint.iterdir()} == {".safetensors", ".json"}
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["state"]["in_hand"]["progress"]["micro"] == 1
    names = dict(state["extra"]["__dict__"])
    assert {"experience.advantages", "experience.old_logprobs"} <= set(names)
    gradients = [key for key in names if key.startswith("grad.policy.")]
    with safe_open(str(checkpoint / "tensors.safetensors"), "pt") as file:
        norms = [file.get_tensor(names[key]["__tensor__"]).norm() for key in gradients]
    assert len(norms) > 5
    assert max(norms) > 0


def test_told_to_stop_it_saves_where_it_is_and_goes_on_later(tmp_path: Path) -> None:
    calls = iter(range(100))

    def reward(completions: list[str]) -> list[float]:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return graded(completions)

    fields = {"num_minibatches": 2}
    whole = train("grpo", tmp_path / "whole", CallableReward(graded), **fields)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreemptedError, match="after step 1, in the middle of the next"):
        train("grpo", tmp_path / "told", CallableReward(reward), **fields)
    assert signal.getsignal(signal.SIGTERM) == before
    fields["resume"] = True
    resumed = train("grpo", tmp_path / "told", CallableReward(graded), **fields)
    assert all(weights(whole)[name].equal(w) for name, w in weights(resumed).items())


def test_a_checkpoint_with_objectives_is_not_resumed_without_them(tmp_path: Path) -> None:
    train("rloo", tmp_path, objectives=OBJECTIVES, max_steps=1)
    with pytest.raises(ValueError, match="with objectives"):
        train("rloo", tmp_path, resume=True, max_steps=2)


def test_an_evaluation_between_does_not_change_the_course(tmp_path: Path) -> None:
    plain = train("dapo", tmp_path / "plain", num_minibatches=2)
    seen = train("dapo", tmp_path / "seen", num_minibatches=2, eval_data=ROWS, eval_steps=1)
    assert all(weights(plain)[name].equal(w) for name, w in weights(seen).items())
