"""Data, a tokenizer, and a policy that sometimes succeeds: from none, nothing is learned."""

from __future__ import annotations

from pathlib import Path

from tasks import Task, write_data

from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.sft import SftConfig, run_sft

NUM_TRAIN = 50_000
NUM_TEST = 1000


def cold_start(task: Task, out: Path, seed: int) -> Path:
    """Writes `out/data` and `out/tokenizer`, fine-tunes a small Llama on the solutions.

    Returns:
        The folder of the policy.
    """
    write_data(task, out / "data", seed=seed, num_train=NUM_TRAIN, num_test=NUM_TEST)
    character_tokenizer(task.alphabet).save_pretrained(out / "tokenizer")
    overrides = [
        f"tokenizer={out / 'tokenizer'}",
        f"output_dir={out / 'sft'}",
        f"train_data={out / 'data'}",
        f"eval_data={out / 'data'}",
        f"seed={seed}",
    ]
    return run_sft(load_config(task.configs / "sft.yaml", SftConfig, overrides)).model_dir
