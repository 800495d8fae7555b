"""Preference pairs from a policy's own completions, labelled by the true quality."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from learned.quality import share_in_place
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewardsvc.policy_client.train.data import Example, load_examples
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.sampling import SamplingParams

NUM_GENERATIONS = 4
PROMPTS_AT_ONCE = 256


def write_preferences(
    policy: Path, prompts: Path, out: Path, *, num_prompts: int, max_new_tokens: int, seed: int
) -> int:
    """Samples completions, and writes each prompt's best and worst as `chosen` and `rejected`.

    Prompts whose completions are all equally good give no pair.

    Returns:
        The number of pairs.
    """
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    engine = TransformersRollout(
        model, eos_ids={tokenizer.eos_token_id}, pad_id=tokenizer.pad_token_id
    )
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    rows = list(load_examples(prompts, limit=num_prompts))
    num_pairs = 0
    with out.open("w", encoding="utf-8") as file:
        for start in range(0, len(rows), PROMPTS_AT_ONCE):
            chunk = rows[start : start + PROMPTS_AT_ONCE]
            ids = [tokenizer(str(row.prompt))["input_ids"] for row in chunk]
            rollout = engine.generate(ids, NUM_GENERATIONS, sampling, generator)
            texts = tokenizer.batch_decode(rollout.completion_lists(), skip_special_tokens=True)
            for i, row in enumerate(chunk):
                pair = _pair(row, texts[i * NUM_GENERATIONS : (i + 1) * NUM_GENERATIONS])
                if pair is not None:
                    file.write(json.dumps(pair) + "\n")
                    num_pairs += 1
    return num_pairs


def _pair(row: Example, completions: list[str]) -> dict[str, str] | None:
    answer = row.answer or ""
    ranked = sorted(completions, key=lambda text: share_in_place(text, answer))
    worst, best = ranked[0], ranked[-1]
    if share_in_place(worst, answer) == share_in_place(best, answer):
        return None
    return {"prompt": str(row.prompt), "chosen": best, "rejected": worst}
