"""From a configuration file to a served reward model, and a training run that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.data.tokenize import tokenize_whole
from rewardsvc.policy_client.train.models import load_reward_model, sequence_rewards
from rewardsvc.policy_client.train.report import write_report
from rewardsvc.policy_client.train.reward_model import RewardModelConfig, run_rm
from rewardsvc.policy_client.train.run_log import read_run
from rewardsvc.policy_client.train.sft import SftConfig, run_sft
from rewardsvc.scoring.types import Sample

TINY = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attention_dropout": 0.1,
}

DEADLINE_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data, a tokenizer and configuration files of a small task: repeat the letters sorted."""
    character_tokenizer("abcd>").save_pretrained(tmp_path / "tokenizer")
    shuffler = random.Random(0)
    words = ["".join(shuffler.choices("abcd", k=4)) for _ in range(120)]
    rows = [
        {
            "prompt": f"{word}>",
            "completion": "".join(sorted(word)),
            "chosen": "".join(sorted(word)),
            "rejected": "".join(sorted(word, reverse=True)),
        }
        for word in words
        if len(set(word)) > 1
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write_config(folder: Path, name: str, **fields: Any) -> Path:
    path = folder / f"{name}.yaml"
    content = {
        "train_data": str(folder),
        "eval_size": 20,
        "output_dir": str(folder / name),
        "per_device_train_batch_size": 10,
        "learning_rate": 5e-3,
        "device": "cpu",
        **fields,
    }
    path.write_text(yaml.safe_dump(content))
    return path


async def test_policy_becomes_a_reward_model_that_the_service_serves(
    folder: Path, start_scorer: Any
) -> None:
    path = write_config(
        folder, "sft", config=TINY, tokenizer=str(folder / "tokenizer"), max_steps=10
    )
    policy = run_sft(load_config(path, SftConfig)).model_dir
    path = write_config(folder, "rm", model=str(policy), max_steps=40)
    result = run_rm(load_config(path, RewardModelConfig, ["seed=1"]))
    assert result.eval_after["eval_accuracy"] > 0.9

    texts = [("dcba>", "abcd"), ("dcba>", "dcba"), ("ab>", ""), ("", "a" * 30)]
    scorer = await start_scorer("orm", model=result.model_dir)
    try:
        scores = await scorer.score([Sample(prompt=p, completion=c) for p, c in texts])
    finally:
        await scorer.close()
    model, tokenizer = load_reward_model(
        RewardModelConfig(model=str(result.model_dir), output_dir=folder, train_data="unused")
    )
    ids = [tokenize_whole(tokenizer, prompt, completion) for prompt, completion in texts]
    with torch.no_grad():
        expected = [
            sequence_rewards(model, torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))
            for row in ids
        ]
    assert [s.value for s in scores] == pytest.approx([e.item() for e in expected], abs=1e-5)
    assert scores[0].value > scores[1].value

    page = write_report(folder / "rm").read_text()
    assert "Held-out accuracy" in page
    assert "Rewards of pairs" in page


RUN = """
import sys, time
from rewardsvc.policy_client.train import offline
from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.sft import SftConfig, run_sft
if "slow" in sys.argv:  # so that the kill surely comes in the middle
    step = offline._Loop._train_step
    offline._Loop._train_step = lambda *a: (time.sleep(0.05), step(*a))[1]
run_sft(load_config(sys.argv[1], SftConfig, sys.argv[2].split()))
"""


def start(config: Path, overrides: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(config), overrides, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.timeout(240)
def test_run_killed_in_the_middle_resumes_to_the_same_weights(folder: Path) -> None:
    config = write_config(
        folder,
        "killed",
        config=TINY,
        tokenizer=str(folder / "tokenizer"),
        max_steps=40,
        save_steps=4,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        resume=True,
    )
    process = start(config, "seed=0", "slow")
    try:
        give_up = time.monotonic() + DEADLINE_S
        while not (folder / "killed" / "checkpoint-00000008").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)
    logged = read_run(folder / "killed").steps
    assert 8 <= logged[-1] < 40
    with (folder / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 39, "metr')  # as if killed in the middle of a line

    assert start(config, "seed=0").wait(2 * DEADLINE_S) == 0
    assert start(config, f"seed=0 output_dir={folder / 'straight'}").wait(2 * DEADLINE_S) == 0
    killed, straight = (read_run(folder / name) for name in ("killed", "straight"))
    lines = (folder / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(41))
    for name in ("loss", "grad_norm", "num_tokens", "epoch"):
        assert killed.metrics[name][1:] == straight.metrics[name][1:], name
    mine, other = (
        load_file(folder / name / "final" / "model.safetensors") for name in ("killed", "straight")
    )
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name
