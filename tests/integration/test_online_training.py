"""Whole online runs with tiny policies: they learn, resume exactly, and live through outages."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import EOS, PAD, ROWS, digit_config, digit_policy, digit_reward
from transformers import AutoModelForCausalLM

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client import ServiceUnavailable
from rewardsvc.policy_client.train.online import (
    CallableReward,
    MalformedRewardsError,
    MissingRewardsError,
    OnlineResult,
    OutageError,
    RewardRequest,
    Rewards,
    ServiceReward,
    run_online,
)
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.outage import UnavailableError
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Sums over threads depend on their number; and tiny tensors are faster without."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logged(folder: Path, metric: str) -> list[float]:
    """The metric at each step that has it, in order."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [line["step"] for line in steps] == sorted({line["step"] for line in steps})
    return [line["metrics"][metric] for line in steps if metric in line["metrics"]]


def train(algorithm: str, folder: Path, source: Any = None, **fields: Any) -> OnlineResult:
    reward = source or CallableReward(digit_reward)
    return run_online(algorithm, digit_config(folder, **fields), reward=reward, **digit_policy())


def weights(result: OnlineResult) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(result.model_dir).state_dict())


def assert_same_weights(one: OnlineResult, other: OnlineResult) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        ("grpo", {}),
        ("grpo", {"kl_coef": 0.01, "num_minibatches": 2, "clip_eps_high": 0.28}),
        ("rloo", {}),
        ("ppo", {"num_epochs": 2}),
        ("ppo", {"num_epochs": 2, "num_minibatches": 2, "kl_target": 6.0, "kl_horizon": 500}),
        ("dr_grpo", {}),
        ("gspo", {}),
        ("reinforce_pp", {}),
    ],
)
def test_every_algorithm_learns_the_task(
    algorithm: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    result = train(algorithm, tmp_path, eval_data=ROWS, num_eval_prompts=10, **fields)
    rewards = logged(tmp_path, "reward")
    assert len(rewards) == 60
    assert np.mean(rewards[:5]) < 0.2
    assert np.mean(rewards[-5:]) > 0.4
    assert result.eval_before["eval/num_prompts"] == 10
    assert result.eval_after["eval/greedy_reward"] > result.eval_before["eval/greedy_reward"] + 0.3
    assert result.num_skipped_steps == 0


def test_metrics_have_the_names_that_users_know(tmp_path: Path) -> None:
    train("ppo", tmp_path, max_steps=2, num_generations=4)
    assert len(logged(tmp_path, "kl")) == 2
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    for name in (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/digit_reward/mean",
        "rewards/digit_reward/std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "kl",
        "kl_coef",
        "entropy",
        "clip_ratio/region_mean",
        "sampling/importance_sampling_ratio/mean",
        "num_tokens",
        "step_time",
        "grad_norm",
        "learning_rate",
        "critic/vf_loss",
        "critic/vf_clipfrac",
        "critic/vf_explained_var",
    ):
        assert math.isfinite(line["metrics"][name]), name
    assert {"rollout", "reference", "values", "reward", "update"} <= set(line["phases"])


@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        ("grpo", {"num_minibatches": 2, "rollout_chunk_prompts": 3}),
        ("ppo", {"num_minibatches": 2, "kl_target": 1.0, "lr_scheduler_type": "cosine"}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    algorithm: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    # 7 prompts of 10 a step: steps and epochs do not end together.
    fields = {"num_prompts": 7, "max_steps": 6, "save_steps": 3} | fields
    whole = train(algorithm, tmp_path / "whole", **fields)
    half = tmp_path / "half"
    stop = StopAtCall(4 * (3 if "rollout_chunk_prompts" in fields else 1))
    with pytest.raises(KeyboardInterrupt):
        train(algorithm, half, stop, reward_threads=1, **fields)
    resumed = train(algorithm, half, resume=True, **fields)
    assert_same_weights(whole, resumed)
    for metric in ("reward", "loss", "num_tokens", "epoch"):
        assert logged(half, metric) == logged(tmp_path / "whole", metric)


class StopAtCall:
    """Rewards the task until a call, at which the user presses Ctrl-C."""

    def __init__(self, call: int) -> None:
        self._left = call
        self._source = CallableReward(digit_reward)

    def score(self, request: RewardRequest) -> Rewards:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._source.score(request)


def test_evaluations_do_not_change_the_course_of_training(tmp_path: Path) -> None:
    without = train("grpo", tmp_path / "without", max_steps=4)
    evaluated = train("grpo", tmp_path / "with", max_steps=4, eval_data=ROWS, eval_steps=1)
    assert_same_weights(without, evaluated)


class SometimesAway:
    """A client whose service is away for some calls, in the middle of the run."""

    def __init__(self, first: int, last: float) -> None:
        self.num_calls = 0
        self.num_scored = 0
        self._away = (first, last)

    def score(self, scorer: str, prompts: Any, completions: Any, **_: Any) -> Any:
        self.num_calls += 1
        if self._away[0] <= self.num_calls <= self._away[1]:
            raise ServiceUnavailable("connection refused")
        self.num_scored += len(completions)
        return Rewards(values=np.array(digit_reward(prompts, completions), np.float32))


def test_an_outage_costs_time_and_nothing_else(tmp_path: Path) -> None:
    expected = train("grpo", tmp_path / "calm", max_steps=5)
    client = SometimesAway(3, 4)
    result = train("grpo", tmp_path / "storm", ServiceReward(client, "digit"), max_steps=5)
    assert client.num_calls == 7
    assert client.num_scored == 5 * 80
    assert_same_weights(expected, result)
    outages = logged(tmp_path / "storm", "rewards/outage_s")
    assert [seconds > 0 for seconds in outages] == [False, False, True, False, False]
    assert logged(tmp_path / "storm", "reward") == logged(tmp_path / "calm", "reward")


def test_a_run_that_an_outage_stopped_resumes_as_if_nothing_had_happened(tmp_path: Path) -> None:
    expected = train("ppo", tmp_path / "calm", max_steps=5)
    storm = tmp_path / "storm"
    source = ServiceReward(SometimesAway(4, math.inf), "digit")
    with pytest.raises(OutageError, match="max_service_outage_s"):
        train("ppo", storm, source, max_steps=5, max_service_outage_s=0.0)
    assert len(logged(storm, "reward")) == 3
    result = train("ppo", storm, max_steps=5, resume=True)
    assert_same_weights(expected, result)
    assert logged(storm, "reward") == logged(tmp_path / "calm", "reward")


def test_a_step_without_rewards_is_skipped_and_counted(tmp_path: Path) -> None:
    calls = iter(range(100))

    def reward(prompts: list[str], completions: list[str]) -> list[float | None]:
        if next(calls) == 1:
            return [None] * len(prompts)
        return digit_reward(prompts, completions)

    result = train("grpo", tmp_path, CallableReward(reward), max_steps=3)
    assert result.num_skipped_steps == 1
    assert logged(tmp_path, "num_skipped_steps") == [0, 1, 1]
    assert logged(tmp_path, "rewards/num_missing") == [0, 80, 0]
    assert len(logged(tmp_path, "grad_norm")) == 2
    assert len(logged(tmp_path, "reward")) == 2


def test_missing_rewards_neither_stop_nor_spoil_the_run(tmp_path: Path) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float | None]:
        values = digit_reward(prompts, completions)
        return [None if row % 3 == 0 else value for row, value in enumerate(values)]

    train("rloo", tmp_path, CallableReward(reward))
    assert logged(tmp_path, "rewards/num_missing") == [27] * 60
    rewards = logged(tmp_path, "reward")
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2


def test_equal_rewards_teach_nothing(tmp_path: Path) -> None:
    def constant(prompts: list[str]) -> list[float]:
        return [0.3] * len(prompts)

    given = digit_policy()
    before = {name: w.clone() for name, w in given["policy"].state_dict().items()}
    config = digit_config(tmp_path, max_steps=2, num_minibatches=2)
    run_online("grpo", config, reward=CallableReward(constant), **given)
    assert logged(tmp_path, "frac_reward_zero_std") == [1.0, 1.0]
    for name, weight in given["policy"].state_dict().items():
        assert weight.equal(before[name])


def test_too_many_missing_rewards_stop_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    def reward(prompts: list[str]) -> list[None]:
        return [None] * len(prompts)

    with pytest.raises(MissingRewardsError, match="max_missing_reward_share"):
        train("grpo", tmp_path, CallableReward(reward), missing_reward_window=3)
    assert len(logged(tmp_path, "num_skipped_steps")) == 2
    assert (tmp_path / "checkpoint-00000002").is_dir()


def test_a_reward_list_of_the_wrong_length_stops_the_run(tmp_path: Path) -> None:
    def reward(prompts: list[str]) -> list[float]:
        return [1.0] * (len(prompts) - 1)

    with pytest.raises(MalformedRewardsError, match=r"shape \(79,\) for 80 completions"):
        train("grpo", tmp_path, CallableReward(reward))


def test_an_outage_during_an_evaluation_loses_no_step(tmp_path: Path) -> None:
    class AwayForEvaluation:
        def score(self, request: RewardRequest) -> Rewards:
            if len(request) == 10:
                raise UnavailableError("away")
            return CallableReward(digit_reward).score(request)

    fields = {"max_steps": 4, "eval_data": ROWS, "eval_steps": 2, "max_service_outage_s": 0.0}
    expected = train("grpo", tmp_path / "calm", **fields)
    # Go on from step 1, so that the first evaluation is that of step 2.
    storm = tmp_path / "storm"
    with pytest.raises(KeyboardInterrupt):
        train("grpo", storm, StopAtCall(3), save_steps=1, **fields)
    with pytest.raises(OutageError):
        train("grpo", storm, AwayForEvaluation(), resume=True, **fields)
    assert len(logged(storm, "reward")) == 2
    assert_same_weights(expected, train("grpo", storm, resume=True, **fields))
    assert logged(storm, "reward") == logged(tmp_path / "calm", "reward")


class CutOff:
    """An engine all of whose completions hit the limit."""

    def __init__(self, model: Any) -> None:
        self._engine = TransformersRollout(model, eos_ids=[EOS], pad_id=PAD)

    def generate(self, *args: Any) -> Rollout:
        rollout = self._engine.generate(*args)
        return replace(rollout, finish=(FinishReason.LENGTH,) * rollout.num_completions)


@pytest.mark.parametrize(("masked", "num_skipped"), [(True, 2), (False, 0)])
def test_truncated_completions_can_be_left_out(
    masked: bool, num_skipped: int, tmp_path: Path
) -> None:
    given = digit_policy()
    result = run_online(
        "grpo",
        digit_config(tmp_path, max_steps=2, mask_truncated_completions=masked),
        reward=CallableReward(digit_reward),
        engine=CutOff(given["policy"]),
        **given,
    )
    assert result.num_skipped_steps == num_skipped
    assert logged(tmp_path, "completions/clipped_ratio") == [1.0, 1.0]


def test_the_true_quality_is_logged_beside_the_reward(tmp_path: Path) -> None:
    def quality(prompts: list[str], completions: list[str]) -> list[float]:
        return [
            float(text[:1] == prompt[0]) for prompt, text in zip(prompts, completions, strict=True)
        ]

    source = CallableReward(digit_reward, quality, weights=[1.0, 0.0])
    fields = {"max_steps": 3, "eval_data": ROWS, "true_quality": "quality"}
    result = train("grpo", tmp_path, source, **fields)
    assert logged(tmp_path, "true_quality") == logged(tmp_path, "rewards/quality/mean")
    assert len(logged(tmp_path, "true_quality")) == 3
    assert 0 <= result.eval_after["eval/sampled_true_quality"] <= 1
    assert 0 <= result.eval_before["eval/greedy_true_quality"] <= 1


def test_a_run_without_rewards_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reward: missing"):
        run_online("grpo", digit_config(tmp_path), **digit_policy())


def test_another_algorithm_does_not_resume_from_the_checkpoint(tmp_path: Path) -> None:
    train("grpo", tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="resume: .* 1 steps of grpo"):
        train("rloo", tmp_path, max_steps=1, resume=True)
