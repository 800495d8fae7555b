"""`rewardsvc train` and `rewardsvc report`, as a person runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewardsvc.policy_client.train.data.characters import character_tokenizer

POLICY = """
config:
  model_type: llama
  hidden_size: 16
  intermediate_size: 32
  num_hidden_layers: 1
  num_attention_heads: 2
  num_key_value_heads: 2
  max_position_embeddings: 32
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rewardsvc", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": f"{d}=",
            "completion": str(d),
            "answer": str(d),
            "chosen": str(d),
            "rejected": "",
        }
        for d in range(10)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    character_tokenizer("0123456789=").save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "sft.yaml").write_text(f"{POLICY}max_steps: 2\n")
    (tmp_path / "grpo.yaml").write_text(
        "max_steps: 2\nnum_prompts: 4\nnum_generations: 2\nmax_new_tokens: 2\n"
        "reward: {type: verifier, name: exact}\n"
    )
    return tmp_path


@pytest.mark.timeout(300)
def test_a_policy_is_warmed_up_trained_and_reported_on(folder: Path) -> None:
    sft = run(
        *("train", "sft", "--config", folder / "sft.yaml"),
        f"tokenizer={folder / 'tokenizer'}",
        f"train_data={folder / 'data.jsonl'}",
        f"output_dir={folder / 'sft'}",
    )
    assert sft.returncode == 0, sft.stderr
    policy = sft.stdout.strip().splitlines()[-1]
    assert (Path(policy) / "model.safetensors").exists()
    grpo = run(
        *("train", "grpo", "--config", folder / "grpo.yaml"),
        f"model={policy}",
        f"train_data={folder / 'data.jsonl'}",
        f"output_dir={folder / 'grpo'}",
    )
    assert grpo.returncode == 0, grpo.stderr
    assert len((folder / "grpo" / "metrics.jsonl").read_text().splitlines()) == 2
    reward_model = run(
        *("train", "rm", "--config", folder / "sft.yaml"),
        f"tokenizer={folder / 'tokenizer'}",
        f"train_data={folder / 'data.jsonl'}",
        f"output_dir={folder / 'rm'}",
    )
    assert reward_model.returncode == 0, reward_model.stderr
    page = run("report", folder / "grpo", folder / "sft")
    assert page.returncode == 0, page.stderr
    assert "<svg" in Path(page.stdout.strip()).read_text()


def test_mistakes_are_one_clear_line(folder: Path) -> None:
    config = folder / "grpo.yaml"
    data, out = "train_data=x.jsonl", f"output_dir={folder / 'out'}"
    for arguments, said in (
        (("train", "grpo", "--config", config, "max_step=3"), "max_step: unknown field"),
        (("train", "grpo", "--config", folder / "nowhere.yaml"), "cannot be read"),
        (("train", "grpo", "--config", config, "model=./gone", data, out), "x.jsonl"),
        (("report", folder / "nowhere"), "no such folder"),
    ):
        done = run(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_help_explains_every_field() -> None:
    done = run("train", "grpo", "--help")
    assert done.returncode == 0
    for field in ("num_generations", "kl_coef", "max_missing_reward_share", "resume"):
        assert field in done.stdout
