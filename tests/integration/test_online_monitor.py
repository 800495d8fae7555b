"""Real runs that go wrong in the ways that policies do, and what the monitor does about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_policies import digit_config, digit_policy, digit_reward

from rewardsvc.policy_client.train.monitor import PolicyCollapsedError
from rewardsvc.policy_client.train.online import run_online
from rewardsvc.policy_client.train.online.rewards import CallableReward, RewardRequest, Rewards
from rewardsvc.policy_client.train.report.findings import Mood, find
from rewardsvc.policy_client.train.run_data import read_run


def pays_for_length(
    prompts: Sequence[str], completions: Sequence[str], **_: Any
) -> list[float | None]:
    """The hole of many reward models."""
    return [float(len(text)) for text in completions]


class ProxyWithAHole:
    """Pays for the digit 7, whatever was asked; `true_quality` is the task's own reward."""

    def score(self, request: RewardRequest) -> Rewards:
        truth = digit_reward([str(one.prompt) for one in request.examples], request.completions)
        values = [float(text.count("7")) for text in request.completions]
        return Rewards(
            values=np.array(values, np.float32),
            components={"truth": np.array(truth, np.float32)},
        )


def alarms(folder: Path) -> list[dict[str, Any]]:
    path = folder / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


LONGER: dict[str, Any] = {"max_new_tokens": 12, "max_steps": 40}


def test_learning_the_task_raises_no_alarm_of_collapse(tmp_path: Path) -> None:
    run_online(
        "grpo", digit_config(tmp_path), reward=CallableReward(digit_reward), **digit_policy()
    )
    names = {alarm["rule"] for alarm in alarms(tmp_path)}
    assert not names & {"identical_completions", "same_text", "repetition", "refusals", "empty"}
    metrics = read_run(tmp_path).metrics
    assert {"text/distinct_2", "text/repeated_ngrams", "watch/num_alarms"} <= metrics.keys()


def test_length_exploitation_is_seen_and_the_report_says_so(tmp_path: Path) -> None:
    run_online(
        "grpo",
        digit_config(tmp_path, **LONGER),
        reward=CallableReward(pays_for_length),
        **digit_policy(),
    )
    assert {"cut_off"} <= {alarm["rule"] for alarm in alarms(tmp_path)}
    texts = [found.text for found in find(read_run(tmp_path)) if found.mood is Mood.WARNING]
    assert any("length limit and are judged unfinished" in text for text in texts)


def test_proxy_with_a_hole_stops_the_run_with_the_reason(tmp_path: Path) -> None:
    # Start from a policy that knows the task, so that there is something to lose.
    given = digit_policy()
    run_online(
        "grpo", digit_config(tmp_path / "task"), reward=CallableReward(digit_reward), **given
    )
    config = digit_config(
        tmp_path / "hacked",
        max_steps=60,
        learning_rate=2e-3,
        true_quality="truth",
        temperature=1.5,
        monitor={"window": 10, "rules": {"proxy_gap": {"action": "stop", "patience": 2}}},
    )
    with pytest.raises(PolicyCollapsedError, match="the policy exploits the reward"):
        run_online("grpo", config, reward=ProxyWithAHole(), **given)
    [alarm] = [line for line in alarms(tmp_path / "hacked") if line["rule"] == "proxy_gap"]
    assert alarm["action"] == "stop"
    saved = sorted(path.name for path in (tmp_path / "hacked").glob("checkpoint-*"))
    assert saved[-1] == f"checkpoint-{alarm['step']:08d}"


def test_roll_back_returns_to_a_step_before_the_trouble_and_raises_the_kl(tmp_path: Path) -> None:
    rule = {"cut_off": {"action": "roll_back", "patience": 3, "above": 0.6, "clear": 0.5}}
    config = digit_config(
        tmp_path,
        **LONGER,
        save_steps=2,
        save_total_limit=20,
        kl_coef=0.001,
        monitor={"rules": rule, "max_roll_backs": 1},
    )
    with pytest.raises(PolicyCollapsedError, match="cut_off"):
        run_online("grpo", config, reward=CallableReward(pays_for_length), **digit_policy())
    first, second = [line for line in alarms(tmp_path) if line["rule"] == "cut_off"]
    assert (first["action"], second["action"]) == ("roll_back", "stop")
    run = read_run(tmp_path)
    by_step = dict(zip(run.steps, run.metrics["kl_coef"], strict=True))
    back = max(step for step in by_step if step < first["since"] and step % 2 == 0)
    assert by_step[back] == pytest.approx(0.001)
    assert by_step[back + 1] == pytest.approx(0.01)
    assert second["step"] > back
    assert list(run.steps) == list(range(1, second["step"] + 1))


def test_rolling_back_without_a_checkpoint_from_before_stops(tmp_path: Path) -> None:
    config = digit_config(
        tmp_path, **LONGER, monitor={"rules": {"cut_off": {"action": "roll_back"}}}
    )
    with pytest.raises(PolicyCollapsedError, match="cut_off"):
        run_online("grpo", config, reward=CallableReward(pays_for_length), **digit_policy())


def test_kl_is_raised_where_there_is_one_and_not_where_there_is_none(tmp_path: Path) -> None:
    rules = {"cut_off": {"action": "raise_kl", "patience": 1}}
    coefficients = {}
    for kl_coef in (0.0, 0.05):
        folder = tmp_path / str(kl_coef)
        config = digit_config(folder, **LONGER, kl_coef=kl_coef, monitor={"rules": rules})
        run_online("grpo", config, reward=CallableReward(pays_for_length), **digit_policy())
        assert any(line["rule"] == "cut_off" for line in alarms(folder))
        coefficients[kl_coef] = read_run(folder).metrics.get("kl_coef")
    assert coefficients[0.0] is None
    assert coefficients[0.05] is not None
    assert max(coefficients[0.05]) == pytest.approx(0.1)


def test_monitor_can_be_switched_off(tmp_path: Path) -> None:
    run_online(
        "grpo",
        digit_config(tmp_path, **LONGER, monitor={"enabled": False}),
        reward=CallableReward(pays_for_length),
        **digit_policy(),
    )
    assert alarms(tmp_path) == []
    assert not any(name.startswith(("text/", "watch/")) for name in read_run(tmp_path).metrics)
