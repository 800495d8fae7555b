"""The configuration of online runs: small files, and errors that name the fix."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tiny_policies import digit_config

from rewardsvc.commands.train import ALGORITHMS, _describe_fields
from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.compat import EVERY_ROW, ROWS, Compat
from rewardsvc.policy_client.algorithms.presets import PRESETS
from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.online.config import (
    OnlineConfig,
    PtxConfig,
    ServiceRewardConfig,
)
from rewardsvc.policy_client.train.online.objectives_config import (
    ConstraintConfig,
    ObjectiveConfig,
    ObjectivesConfig,
)
from rewardsvc.policy_client.train.online.resolve import resolve, row_values

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
    for section in (OnlineConfig, PtxConfig, ObjectivesConfig, ObjectiveConfig, ConstraintConfig):
        assert all(field.description for field in section.model_fields.values())


def test_every_row_has_a_command_whose_help_tells_the_rows_values() -> None:
    assert set(PRESETS) <= set(ALGORITHMS)
    lines = _describe_fields(OnlineConfig, row_values("dapo"))
    assert "   clip_eps_high (0.28 by the row)" in lines
    for name, value in row_values("dapo").items():
        assert f"   {name} ({value} by the row)" in lines


@pytest.mark.parametrize("compat", list(Compat))
def test_a_dialect_changes_only_what_its_table_says(compat: Compat, tmp_path: Path) -> None:
    for name, row in PRESETS.items():
        spec = resolve(name, digit_config(tmp_path, compat=compat, num_generations=None))
        changed = {f.name for f in fields(row) if getattr(spec, f.name) != getattr(row, f.name)}
        assert changed <= set(EVERY_ROW[compat]) | set(ROWS.get((name, compat), ()))
    assert all(name in PRESETS for name, _ in ROWS)


def test_a_field_wins_over_the_dialect(tmp_path: Path) -> None:
    spec = resolve("grpo", digit_config(tmp_path, compat="trl", advantage_eps=0.5))
    assert spec.std_eps == 0.5
    assert spec.kl_by_ratio


def test_a_row_that_drops_a_penalty_for_length_can_keep_it_away(tmp_path: Path) -> None:
    spec = resolve("dapo", digit_config(tmp_path))
    assert digit_config(tmp_path, max_new_tokens=20).overlong_cache(spec) == 4
    assert digit_config(tmp_path, overlong_cache_tokens=0).overlong_cache(spec) == 0


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
        ("ppo", {"num_generations": 1, "dynamic_sampling": True}, "dynamic_sampling compares"),
        ("ppo_penalty", {"kl_place": "reward"}, "kl_place is reward; .*old policy"),
        ("ppo", {"kl_place": "return"}, "kl_place is return"),
        ("grpo", {"process_weight": 1.0}, "process_weight is 1.0; group-norm has one"),
        ("grpo_process", {"process_weight": 0.0}, "needs process rewards"),
        ("grpo_process", {"kl_place": "reward", "kl_coef": 0.1}, "several rewards per completion"),
        ("grpo", {"importance_sampling_min": 3.0}, "low is 3.0, high is 2.0"),
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
        "overlong_cache_tokens: 999",
        "compat: trlx",
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "run.yaml").write_text(MINIMAL.replace("reward:", "#") + line)
    with pytest.raises(ConfigError, match=line.partition(":")[0]):
        load_config(tmp_path / "run.yaml", OnlineConfig)
