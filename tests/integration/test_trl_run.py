"""TRL's own trainer learns from a verifier in this process and from a scorer of a service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer, write_causal_lm

from rewardsvc.policy_client import RewardClient
from rewardsvc.policy_client.adapters.trl import trl_reward
from rewardsvc.verifiers import InstructionFollowing
from rewardsvc.verifiers.instructions import Credit

NUM_GENERATIONS = 4
NUM_STEPS = 2

CONFIG = """
server: {port: 0}
scorers:
  exact: {type: exact}
"""


def at_least(num_words: int) -> dict[str, Any]:
    params = {"num_words": num_words, "relation": "at least"}
    return {"kind": "length_constraints:number_words", "params": params}


ROWS = [
    {"prompt": "say a word", "instructions": [*map(at_least, range(1, 7))], "answer": "word"},
    # No verifier can judge these: an instruction that cannot be read, and no answer.
    {"prompt": "say nothing", "instructions": [at_least(-1)], "answer": None},
]


# TRL still uses the old names of what transformers calls activation checkpointing since 5.20.
@pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated and will be removed in v6:FutureWarning"
)
def test_two_steps_of_grpo_mask_what_has_no_reward(
    tmp_path: Path, server_process: Callable[..., Any]
) -> None:
    import datasets
    import trl

    address = server_process(CONFIG).address
    model = write_causal_lm(tmp_path / "policy")
    remote = RewardClient(address, timeout_s=30.0).reward_function("exact")
    trainer = trl.GRPOTrainer(
        model=str(model),
        processing_class=tiny_tokenizer(chat=False),
        reward_funcs=[
            trl_reward(InstructionFollowing(credit=Credit.FRACTION), name="words"),
            remote,
        ],
        train_dataset=datasets.Dataset.from_list(ROWS),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=len(ROWS) * NUM_GENERATIONS,
            num_generations=NUM_GENERATIONS,
            max_completion_length=8,
            max_steps=NUM_STEPS,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            seed=1,
        ),
    )
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.train()
    remote.close()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert not torch.equal(before, after)

    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == NUM_STEPS
    for entry in logged:
        assert entry["words/no_reward"] == 0.5
        assert entry["exact/no_reward"] == 0.5
        assert 0.0 < entry["rewards/words/mean"] <= 1.0
        assert entry["rewards/exact/mean"] == 0.0
        # The mean over the half that has rewards; as zeros, the others would halve it.
        assert entry["reward"] == pytest.approx(entry["rewards/words/mean"])

    unjudged = np.array([prompt == "say nothing" for prompt in trainer._logs["prompt"]])
    advantages = np.array(trainer._logs["advantages"])
    assert unjudged.sum() >= NUM_GENERATIONS
    for name in ("words", "exact"):
        assert np.isnan(np.array(trainer._logs["rewards"][name])[unjudged]).all()
        assert np.isfinite(np.array(trainer._logs["rewards"][name])[~unjudged]).all()
    assert (advantages[unjudged] == 0.0).all()
    assert (advantages[~unjudged] != 0.0).any()
