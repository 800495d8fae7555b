"""GRPO in TRL with a verifier in this process, a penalty of one's own, and perhaps a service.

pip install "rewardsvc[math]" trl
python examples/trl/train.py
python examples/trl/train.py localhost:50051 rlvr     # and a scorer of a running service
"""

from __future__ import annotations

import sys
from typing import Any

from rewardsvc.policy_client import RewardClient
from rewardsvc.policy_client.adapters.trl import trl_reward
from rewardsvc.verifiers import MathVerifier, overlong_penalty

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
MAX_LENGTH = 512


def overlong(completion_ids: list[int]) -> float:
    """DAPO's soft punishment over the last quarter of the length."""
    return overlong_penalty(
        len(completion_ids), max_length=MAX_LENGTH, cache_length=MAX_LENGTH // 4
    )


def rows() -> list[dict[str, Any]]:
    """Sums as chats; `answer` is what the verifier reads."""
    return [
        {
            "prompt": [{"role": "user", "content": f"{a} + {b} = ? Answer in \\boxed{{}}."}],
            "answer": str(a + b),
        }
        for a in range(10, 60, 7)
        for b in range(10, 60, 9)
    ]


def reward_functions(address: str | None, scorer: str) -> list[Any]:
    """What TRL calls after each rollout."""
    functions: list[Any] = [trl_reward(MathVerifier()), trl_reward(overlong)]
    if address is not None:
        functions.append(RewardClient(address).reward_function(scorer))
    return functions


def main() -> None:
    """Trains."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    address = sys.argv[1] if len(sys.argv) > 1 else None
    scorer = sys.argv[2] if len(sys.argv) > 2 else "rlvr"
    GRPOTrainer(
        model=MODEL,
        reward_funcs=reward_functions(address, scorer),
        train_dataset=Dataset.from_list(rows()),
        args=GRPOConfig(output_dir="runs/trl", max_completion_length=MAX_LENGTH, logging_steps=1),
    ).train()


if __name__ == "__main__":
    main()
