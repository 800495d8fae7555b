"""Whole short runs of what rows and options add: every row steps, each complaint is answered."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import EOS, PAD, ROWS, digit_config, digit_policy, digit_reward

from rewardsvc.policy_client.algorithms.compat import Compat
from rewardsvc.policy_client.algorithms.presets import PRESETS
from rewardsvc.policy_client.train.online import (
    CallableReward,
    MalformedRewardsError,
    OnlineResult,
    Rewards,
    ServiceReward,
    run_online,
)
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def graded(completions: list[str], **_: Any) -> list[float]:
    return [sum(map(ord, text)) % 17 / 17 for text in completions]


def steps_of_digits(
    prompts: list[str], completions: list[str], **_: Any
) -> list[list[float] | None]:
    """A process reward for every character but `=`, which separates steps."""
    return [
        [float(part == prompt[0]) for part in text.split("=") if part.strip()] or None
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def graded_steps(completions: list[str], **_: Any) -> list[list[float] | None]:
    return [
        [sum(map(ord, part)) % 5 / 5 for part in text.split("=") if part.strip()] or None
        for text in completions
    ]


def train(algorithm: str, folder: Path, source: Any = None, **fields: Any) -> OnlineResult:
    config = digit_config(folder, **{"max_steps": 2, "num_prompts": 4, **fields})
    source = source or CallableReward(graded)
    return run_online(algorithm, config, reward=source, **digit_policy())


def logged(folder: Path, metric: str) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["metrics"] for line in lines]
    return [step[metric] for step in steps if metric in step]


@pytest.mark.parametrize("algorithm", PRESETS)
def test_every_row_takes_a_step_in_every_dialect(algorithm: str, tmp_path: Path) -> None:
    process = PRESETS[algorithm].process_weight > 0
    source = CallableReward(graded_steps if process else graded)
    # The variants of PPO have no dialects of their own.
    for compat in (None,) if algorithm.startswith("ppo_") else (None, *Compat):
        folder = tmp_path / str(compat)
        fields = {"num_generations": 4, "max_steps": 1, "num_prompts": 2, "step_separator": "="}
        fields |= {"num_minibatches": 1, "num_epochs": 1}
        train(algorithm, folder, source, compat=compat, **fields)
        (norm,) = logged(folder, "grad_norm")
        assert math.isfinite(norm)
        assert norm > 0


@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        ("dapo", {"num_minibatches": 2, "overlong_cache_tokens": 0}),
        ("reinforce", {}),
        ("ppo_penalty", {"num_epochs": 1}),
    ],
)
def test_more_algorithms_learn_the_task(
    algorithm: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    steps = {"max_steps": 50, "num_prompts": 10}
    train(algorithm, tmp_path, CallableReward(digit_reward), **steps, **fields)
    rewards = logged(tmp_path, "reward")
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15


def test_process_rewards_teach(tmp_path: Path) -> None:
    fields = {"max_steps": 50, "num_prompts": 10, "step_separator": "=", "kl_coef": 0.0}
    # A completion without a step has no process reward; at first half of them have none.
    source = CallableReward(steps_of_digits)
    train("grpo_process", tmp_path, source, max_missing_reward_share=1.0, **fields)
    rewards = logged(tmp_path, "reward")
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15


def test_process_rewards_of_a_service_reach_the_trainer(tmp_path: Path) -> None:
    class Client:
        def score(self, scorer: str, prompts: Any, completions: Any, **_: Any) -> Any:
            rows = steps_of_digits(prompts, completions)
            values = [math.nan if row is None else min(row) for row in rows]
            steps = [np.array(row or [], np.float32) for row in rows]
            return Rewards(values=np.array(values, np.float32), steps=steps)

    source = ServiceReward(Client(), "prm")
    train("grpo_process", tmp_path, source, step_separator="=", max_steps=1)
    assert logged(tmp_path, "grad_norm")[0] > 0


def test_steps_that_do_not_fit_the_completion_stop_the_run(tmp_path: Path) -> None:
    def wrong(completions: list[str]) -> list[list[float]]:
        return [[1.0] * 9 for _ in completions]

    with pytest.raises(MalformedRewardsError, match="9 rewards.*step_separator is '='"):
        train("grpo_process", tmp_path / "a", CallableReward(wrong), step_separator="=")
    with pytest.raises(MalformedRewardsError, match="gave no process rewards"):
        train("grpo_process", tmp_path / "b", CallableReward(graded))


class Odd:
    """An engine that gives up on some completions, leaving nothing of one and part of another."""

    def __init__(self, model: Any) -> None:
        self._engine = TransformersRollout(model, eos_ids=[EOS], pad_id=PAD)

    def generate(self, *args: Any) -> Rollout:
        rollout = self._engine.generate(*args)
        mask, finish = rollout.completion_mask.clone(), list(rollout.finish)
        mask[0], finish[0] = False, FinishReason.ABORT
        mask[1, 1:], finish[1] = False, FinishReason.ABORT
        mask[2] = False  # an empty completion that the engine calls complete
        zeros = torch.zeros_like(rollout.logprobs)
        return replace(
            rollout,
            completion_mask=mask,
            logprobs=torch.where(mask, rollout.logprobs, zeros),
            draw_logprobs=torch.where(mask, rollout.draw_logprobs, zeros),
            finish=tuple(finish),
        )


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "rloo", "gspo", "reinforce", "dr_grpo"])
def test_empty_and_aborted_completions_are_survived(algorithm: str, tmp_path: Path) -> None:
    given = digit_policy()
    config = digit_config(tmp_path, max_steps=2, num_prompts=2, num_generations=4, kl_coef=0.1)
    seen: list[list[str]] = []

    def reward(completions: list[str]) -> list[float]:
        seen.append(completions)
        return [float(number) for number in range(len(completions))]

    source = CallableReward(reward)
    run_online(algorithm, config, reward=source, engine=Odd(given["policy"]), **given)
    assert logged(tmp_path, "rewards/num_missing") == [2.0, 2.0], "the aborted two"
    assert logged(tmp_path, "completions/min_length") == [0.0, 0.0]
    assert seen[0][2] == ""
    assert all(math.isfinite(norm) for norm in logged(tmp_path, "grad_norm"))
    assert len(logged(tmp_path, "grad_norm")) == 2


def test_a_lone_completion_of_length_zero_alone_in_a_batch_is_survived(tmp_path: Path) -> None:
    class Silent(Odd):
        def generate(self, *args: Any) -> Rollout:
            rollout = self._engine.generate(*args)
            return replace(rollout, completion_mask=torch.zeros_like(rollout.completion_mask))

    given = digit_policy()
    config = digit_config(tmp_path, max_steps=1, num_prompts=1, num_generations=2, kl_coef=0.1)
    source = CallableReward(graded)
    result = run_online("ppo", config, reward=source, engine=Silent(given["policy"]), **given)
    assert result.num_skipped_steps == 1


def test_soft_overlong_is_taken_off_the_reward_and_told(tmp_path: Path) -> None:
    def constant(completions: list[str]) -> list[float]:
        return [0.5] * len(completions)

    fields = {"overlong_cache_tokens": 3, "overlong_penalty": 0.5, "max_new_tokens": 3}
    train("grpo", tmp_path, CallableReward(constant), max_steps=1, **fields)
    (penalty,), (shaped,) = (
        logged(tmp_path, name) for name in ("rewards/overlong/mean", "reward_shaped")
    )
    (length,) = logged(tmp_path, "completions/mean_length")
    assert penalty == pytest.approx(-0.5 * length / 3)
    assert shaped == pytest.approx(0.5 + penalty)
    assert logged(tmp_path, "reward") == [0.5]
    assert logged(tmp_path, "frac_reward_zero_std")[0] < 1


def test_dynamic_sampling_reads_the_named_accuracy_and_never_aborts(tmp_path: Path) -> None:
    def never(prompts: list[str], **_: Any) -> list[float]:
        return [0.0] * len(prompts)

    source = CallableReward(never, graded)
    fields = {"dynamic_sampling_metric": "never", "dynamic_sampling_rounds": 3, "max_steps": 1}
    train("dapo", tmp_path, source, **fields)
    assert logged(tmp_path, "dynamic_sampling/rounds") == [3.0]
    assert logged(tmp_path, "dynamic_sampling/kept_share") == [0.0]
    # All that was sampled is told and counted: 3 rounds of 4 prompts.
    assert logged(tmp_path, "epoch") == [1.2]


@pytest.mark.parametrize(("masked", "moves"), [(False, True), (True, False)])
def test_a_kl_term_moves_groups_of_equal_rewards_unless_they_are_left_out(
    masked: bool, moves: bool, tmp_path: Path
) -> None:
    def constant(prompts: list[str], **_: Any) -> list[float]:
        return [0.3] * len(prompts)

    class Elsewhere:
        def logprobs(self, rollout: Rollout, _: Any) -> torch.Tensor:
            return torch.where(rollout.completion_mask, rollout.logprobs - 0.5, 0.0)

    given = digit_policy()
    before = {name: w.clone() for name, w in given["policy"].state_dict().items()}
    config = digit_config(tmp_path, max_steps=1, kl_coef=0.5, mask_zero_std_groups=masked)
    source = CallableReward(constant)
    run_online("grpo", config, reward=source, reference=Elsewhere(), **given)
    after = given["policy"].state_dict()
    assert any(not after[name].equal(w) for name, w in before.items()) is moves


class Skewed:
    """An engine whose log-probs are not the policy's: those of some tokens are off by 2 nats."""

    def __init__(self, model: Any, shift: float) -> None:
        self._engine = TransformersRollout(model, eos_ids=[EOS], pad_id=PAD)
        self._shift = shift

    def generate(self, *args: Any) -> Rollout:
        rollout = self._engine.generate(*args)
        shifted = rollout.logprobs.clone()
        shifted[:, 0] -= self._shift
        return replace(rollout, logprobs=shifted)


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_the_mismatch_is_reported_as_it_was_before_truncation(
    num_epochs: int, tmp_path: Path
) -> None:
    name = "sampling/importance_sampling_ratio"
    norms = {}
    for mode in ("off", "token-truncate", "token-mask"):
        given, folder = digit_policy(), tmp_path / mode
        config = digit_config(
            folder,
            max_steps=1,
            num_epochs=num_epochs,
            importance_sampling=mode,
            importance_sampling_max=2.0,
        )
        engine, source = Skewed(given["policy"], 2.0), CallableReward(graded)
        run_online("grpo", config, reward=source, engine=engine, **given)
        assert logged(folder, f"{name}/max")[0] == pytest.approx(math.exp(2), rel=1e-3)
        assert logged(folder, f"{name}/min")[0] == pytest.approx(1, rel=1e-3)
        norms[mode] = logged(folder, "grad_norm")[0]
    assert len(set(norms.values())) == 3


@pytest.mark.parametrize("fields", [{"top_p": 0.5}, {"top_k": 3}])
def test_sampling_from_fewer_tokens_is_no_mismatch(fields: dict[str, Any], tmp_path: Path) -> None:
    train("grpo", tmp_path, max_steps=1, **fields)
    for which in ("min", "mean", "max"):
        (ratio,) = logged(tmp_path, f"sampling/importance_sampling_ratio/{which}")
        assert ratio == pytest.approx(1, abs=1e-4)


def test_ordinary_text_is_mixed_in_and_learned(tmp_path: Path) -> None:
    def constant(prompts: list[str], **_: Any) -> list[float]:
        return [0.0] * len(prompts)

    text = [{"prompt": row["prompt"], "completion": row["answer"]} for row in ROWS]
    ptx = {"data": text, "coef": 1.0, "batch_size": 10}
    train("grpo", tmp_path, CallableReward(constant), ptx=ptx, max_steps=25)
    losses = logged(tmp_path, "ptx_loss")
    assert losses[-1] < 0.6 * losses[0]


def test_the_doubling_rule_halves_a_weight_that_is_not_needed(tmp_path: Path) -> None:
    fields = {"learning_rate": 1e-6, "max_steps": 3, "num_epochs": 1}
    train("ppo_penalty", tmp_path, **fields)
    assert logged(tmp_path, "kl_coef") == [1.0, 0.5, 0.25]
    assert all(0 <= kl < 0.01 for kl in logged(tmp_path, "kl_old"))


def test_the_moving_baseline_starts_with_the_second_batch(tmp_path: Path) -> None:
    train("reinforce", tmp_path, max_steps=3, num_generations=2)
    rewards, baselines = logged(tmp_path, "reward"), logged(tmp_path, "baseline")
    # Rewards less the KL penalty, which is 0 for the first batch only.
    assert len(baselines) == 2
    assert baselines[0] == pytest.approx(rewards[0], abs=1e-5)


def test_gradients_that_are_not_numbers_stop_the_run_in_the_end(tmp_path: Path) -> None:
    given = digit_policy()
    with torch.no_grad():
        given["policy"].get_output_embeddings().weight[5] = 1e30
    healthy = TransformersRollout(digit_policy()["policy"], eos_ids=[EOS], pad_id=PAD)
    config = digit_config(tmp_path, max_steps=9, max_nonfinite_updates=2, learning_rate=1e-3)
    with pytest.raises(FloatingPointError, match="3 gradients in a row"):
        run_online("grpo", config, reward=CallableReward(graded), engine=healthy, **given)
