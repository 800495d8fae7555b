"""The configuration of online runs: small files, and errors that name the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_policies import digit_config

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.presets import PRESETS
from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.online.config import (
    OnlineConfig,
    ServiceRewardConfig,
    resolve,
)

MINIMAL = """
model: some/model
train_data: some/data
output_dir: out
reward: {type: service, scorer: rlvr}
"""


def test_a_small_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(MINIMAL)
    config = load_config(tmp_path / "run.yaml", OnlineConfig)
    assert config.reward == ServiceRewardConfig(scorer="rlvr")
    for name, row in PRESETS.items():
        assert resolve(name, config) == row, "a file that overrides nothing gives the row itself"


def test_every_field_says_what_it_is() -> None:
    assert all(field.description for field in OnlineConfig.model_fields.values())


def test_fields_override_the_row(tmp_path: Path) -> None:
    config = digit_config(
        tmp_path,
        clip_eps_high=0.28,
        dual_clip=3.0,
        loss_aggregation="seq-mean-token-mean",
        kl_coef=0.0,
        num_epochs=2,
        num_minibatches=3,
    )
    spec = resolve("ppo", config)
    assert (spec.clip.eps_low, spec.clip.eps_high, spec.clip.dual) == (0.2, 0.28, 3.0)
    assert spec.aggregation is Aggregation.SEQ_MEAN_TOKEN_MEAN
    assert (spec.kl_coef, spec.num_epochs, spec.num_minibatches) == (0.0, 2, 3)
    assert spec.num_generations == 8


@pytest.mark.parametrize(
    ("algorithm", "fields", "message"),
    [
        ("sarsa", {}, "algorithm: 'sarsa' is none of .*grpo"),
        ("grpo", {"num_generations": 1}, "num_generations is 1"),
        ("ppo", {"num_minibatches": 1000}, "num_minibatches: 1000"),
    ],
)
def test_contradictions_are_named(
    tmp_path: Path, algorithm: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(algorithm, digit_config(tmp_path, **fields))


@pytest.mark.parametrize(
    "line",
    [
        "temperature: 0",
        "top_p: 1.5",
        "gradient_accumulation_steps: 4",
        "reward: {type: oracle}",
        "num_promts: 3",
        "kl_estimator: k4",
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "run.yaml").write_text(MINIMAL.replace("reward:", "#") + line)
    with pytest.raises(ConfigError, match=line.partition(":")[0]):
        load_config(tmp_path / "run.yaml", OnlineConfig)
