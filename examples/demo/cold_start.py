"""Data, a tokenizer, and a policy that sometimes succeeds: from none, nothing is learned."""

from __future__ import annotations

from pathlib import Path

from tasks import Task, write_data

from rewardsvc.policy_client.train.config_base import load_config
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.sft import SftConfig, run_sft

NUM_TRAIN = 40_000
NUM_TEST = 1000
QUICK_OVERRIDES = ("max_steps=4", "per_device_train_batch_size=16", "config.num_hidden_layers=1")


def cold_start(task: Task, out: Path, seed: int, *, quick: bool = False) -> Path:
    """Writes `out/data` and `out/tokenizer`, fine-tunes a small Llama on the solutions.

    Args:
        task: What to learn.
        out: Where everything goes.
        seed: Of data, weights and order.
        quick: A few steps only, to see that all parts work together.

    Returns:
        The folder of the policy.
    """
    share = 50 if quick else 1
    num_train, num_test = NUM_TRAIN // share, NUM_TEST // share
    write_data(task, out / "data", seed=seed, num_train=num_train, num_test=num_test)
    character_tokenizer(task.alphabet).save_pretrained(out / "tokenizer")
    overrides = [
        f"tokenizer={out / 'tokenizer'}",
        f"output_dir={out / 'sft'}",
        f"train_data={out / 'data'}",
        f"eval_data={out / 'data'}",
        f"seed={seed}",
        *(QUICK_OVERRIDES if quick else ()),
    ]
    return run_sft(load_config(task.configs / "sft.yaml", SftConfig, overrides)).model_dir
