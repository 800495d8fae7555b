"""Configurations load from YAML, and their errors name field, value and fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.config_base import TrainConfigBase, load_config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_file_and_overrides_become_a_config(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "config: {model_type: llama, hidden_size: 32}\ntokenizer: t\noutput_dir: out\nseed: 1\n",
    )
    config = load_config(
        path, TrainConfigBase, ["seed=7", "learning_rate=1e-4", "config.hidden_size=64"]
    )
    assert config.seed == 7
    assert config.learning_rate == 1e-4
    assert config.model_config_dict == {"model_type": "llama", "hidden_size": 64}
    assert config.output_dir == Path("out")


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, "model: m\noutput_dir: o\nlearning_rate: 3e-5\nconfig: null\n")
    assert load_config(path, TrainConfigBase).learning_rate == 3e-5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1", ["learning_rat", "1", "did you mean 'learning_rate'"]),
        ("learning_rate: -1", ["learning_rate", "-1", "greater than 0"]),
        ("lr_scheduler_type: step", ["lr_scheduler_type", "step", "'cosine'"]),
        ("seed: many", ["seed", "many", "integer"]),
        ("config: {hidden_size: 3}\nmodel: null\ntokenizer: t", ["config.model_type", "llama"]),
        ("config: {model_type: llama}", ["either `model`"]),
        ("model: null", ["either `model`"]),
    ],
)
def test_errors_name_field_value_and_fix(tmp_path: Path, text: str, words: list[str]) -> None:
    lines = {"model": "model: m", "output_dir": "output_dir: o"}
    given = [line for key, line in lines.items() if f"{key}:" not in text]
    path = write(tmp_path, "\n".join([*given, text]))
    with pytest.raises(ConfigError) as error:
        load_config(path, TrainConfigBase)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_missing_field_is_described(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"output_dir: missing; Where logs"):
        load_config(write(tmp_path, "model: m"), TrainConfigBase)


@pytest.mark.parametrize("text", ["- 1", "a: [", "just words"])
def test_files_that_hold_no_mapping_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(write(tmp_path, text), TrainConfigBase)


@pytest.mark.parametrize("override", ["seed", "=3", "seed=[", "seed.x=1"])
def test_malformed_overrides_are_named(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, "model: m\noutput_dir: o\nseed: 1")
    with pytest.raises(ConfigError, match="override"):
        load_config(path, TrainConfigBase, [override])


def test_every_field_is_described() -> None:
    for name, info in TrainConfigBase.model_fields.items():
        assert info.description, name


def test_checking_a_configuration_needs_no_torch() -> None:
    code = (
        "import sys; import rewardsvc.policy_client.train.config_base; "
        "import rewardsvc.policy_client.train.report; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
