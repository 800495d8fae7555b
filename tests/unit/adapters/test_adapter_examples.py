"""The examples give rewards when they are loaded as their trainers load them."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[3] / "examples"
RIGHT, WRONG = r"so it is \boxed{4}", r"so it is \boxed{5}"


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_the_trl_example() -> None:
    example = load("trl/train.py")
    right, length = example["reward_functions"](None, "rlvr")
    assert right(completions=[RIGHT, WRONG], answer=["4", "4"]) == [1.0, 0.0]
    assert length(completions=[RIGHT], completion_ids=[[1] * 512]) == [-1.0]
    assert {"prompt", "answer"} == set(example["rows"]()[0])


def test_the_verl_example() -> None:
    example = load("verl/my_reward.py")
    assert example["compute_score"]("math", RIGHT, "4", {}) == 1.0
    assert example["compute_score_batch"](["math"] * 2, [RIGHT, WRONG], ["4", "4"]) == [1.0, 0.0]


def test_the_openrlhf_example() -> None:
    reward_func = load("openrlhf/reward_func.py")["reward_func"]
    result = reward_func([f"2+2?{RIGHT}</s>", f"2+2?{WRONG}"], ["2+2?"] * 2, ["4", "4"])
    assert result["rewards"].tolist() == [1.0, 0.0]


def test_the_prime_intellect_example() -> None:
    right, think = load("prime_intellect/environment.py")["FUNCTIONS"]
    chat = [{"role": "assistant", "content": f"<think>2+2</think>{RIGHT}"}]
    assert asyncio.run(right(completion=chat, prompt="2+2?", answer="4", state={})) == 1.0
    assert asyncio.run(think(completion=chat, prompt="2+2?", answer="4", state={})) == 1.0
    assert think.__name__ == "think"
