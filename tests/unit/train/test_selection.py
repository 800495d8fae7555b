"""Online DPO and RAFT learn from their own completions, and resume exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_policies import ROWS, digit_policy, digit_reward

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.data import DataError
from rewardsvc.policy_client.train.online.outage import OutageError, UnavailableError
from rewardsvc.policy_client.train.online.rewards import CallableReward, RewardRequest, Rewards
from rewardsvc.policy_client.train.run_log import read_run
from rewardsvc.policy_client.train.selection import SELECTION_TRAINERS, run_selection


def config_of(name: str, folder: Path, **changes: Any) -> Any:
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    fields: dict[str, Any] = {
        "model": "passed by the caller",
        "train_data": str(data),
        "eval_data": str(data),
        "output_dir": folder / "run",
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 10,
        "max_steps": 60,
        "warmup_steps": 2,
        "lr_scheduler_type": "constant",
        "max_new_tokens": 3,
        "num_generations": 16,
        "max_length": 16,
        "save_steps": 1000,
        "device": "cpu",
    }
    return SELECTION_TRAINERS[name].model_validate(fields | changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("online_dpo", {}),
        ("online_dpo", {"reference_update_steps": 10}),
        ("online_dpo", {"loss": "ipo"}),
        ("online_dpo", {"loss": "slic", "beta": 1.0, "learning_rate": 3e-2}),
        ("raft", {}),
        ("raft", {"min_reward": 0.5}),
    ],
)
def test_reward_of_held_out_draws_rises(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    result = run_selection(
        name,
        config_of(name, tmp_path, **changes),
        reward=CallableReward(digit_reward),
        **digit_policy(),
    )
    assert result.eval_after["eval_reward"] > result.eval_before["eval_reward"] + 0.2
    run = read_run(tmp_path / "run")
    assert len(run.metrics["selection/used_prompts"]) == 61


class Scripted:
    """Gives rewards, none, or trouble."""

    def __init__(self, values: Sequence[float] | Exception) -> None:
        self.values = values

    def score(self, request: RewardRequest) -> Rewards:
        if isinstance(self.values, Exception):
            raise self.values
        repeats = math.ceil(len(request) / len(self.values))
        return Rewards(values=np.array([*self.values] * repeats, np.float32)[: len(request)])


@pytest.mark.parametrize("name", sorted(SELECTION_TRAINERS))
@pytest.mark.parametrize("values", [[math.nan], [1.0], [0.5, math.nan]])
def test_steps_with_nothing_to_learn_from_change_nothing(
    name: str, values: list[float], tmp_path: Path
) -> None:
    given = digit_policy()
    before = {key: value.clone() for key, value in given["policy"].state_dict().items()}
    result = run_selection(
        name, config_of(name, tmp_path, max_steps=2), reward=Scripted(values), **given
    )
    assert result.metrics["skipped"] == 1.0
    after = given["policy"].state_dict()
    assert all((before[key] == after[key]).all() for key in before)


def test_prompts_without_a_reward_are_left_out_and_counted(tmp_path: Path) -> None:
    values = [math.nan] * 16 + [0.0, 1.0] * 8  # every other prompt
    result = run_selection(
        "raft", config_of("raft", tmp_path, max_steps=1), reward=Scripted(values), **digit_policy()
    )
    assert result.metrics["rewards/missing"] == 0.5
    assert result.metrics["selection/used_prompts"] == 0.5
    assert result.metrics["reward"] == 0.5


@pytest.mark.parametrize("name", sorted(SELECTION_TRAINERS))
def test_interrupted_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"save_steps": 3}
    if name == "online_dpo":
        changes["reference_update_steps"] = 2

    def run(folder: str, **more: Any) -> Path:
        config = config_of(name, tmp_path, **changes, output_dir=tmp_path / folder, **more)
        return run_selection(
            name, config, reward=CallableReward(digit_reward), **digit_policy()
        ).model_dir

    whole = run("whole", max_steps=6)
    run("halves", max_steps=3)
    resumed = run("halves", max_steps=6, resume=True)
    want, found = (load_file(path / "model.safetensors") for path in (whole, resumed))
    assert all((want[key] == found[key]).all() for key in want)


def test_reward_service_that_stays_away_stops_the_run(tmp_path: Path) -> None:
    config = config_of("raft", tmp_path, max_service_outage_s=0)
    with pytest.raises(OutageError, match="max_service_outage_s is 0"):
        run_selection("raft", config, reward=Scripted(UnavailableError("gone")), **digit_policy())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reward: missing"):
        run_selection("raft", config_of("raft", tmp_path), **digit_policy())
    with pytest.raises(ValueError, match="configured by OnlineDpoConfig"):
        run_selection("online_dpo", config_of("raft", tmp_path))
    with pytest.raises(DataError, match="must fit into max_length 4"):
        run_selection(
            "raft",
            config_of("raft", tmp_path, max_length=4),
            reward=CallableReward(digit_reward),
            **digit_policy(),
        )
