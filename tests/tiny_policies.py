"""Tiny random policies and a task that they can learn, for tests of the online trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM, PreTrainedModel

from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.online import OnlineConfig
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout

ALPHABET = "0123456789="
PAD, EOS = 0, 2
ROWS = [{"prompt": f"{digit}=", "answer": str(digit)} for digit in range(10)]
"""The task: write the prompt's digit, and end."""


def tiny_policy(family: str = "llama", *, seed: int = 0, spread: float = 0.3, **config: Any) -> Any:
    """A causal model; `spread` is the deviation of its weights, 0 for transformers' own."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**config)).eval()
    if spread:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, spread)
    return model


def digit_policy(seed: int = 0) -> dict[str, Any]:
    """A fresh policy and its tokenizer for the task, as keywords of `run_online`."""
    tokenizer = character_tokenizer(ALPHABET)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    policy = tiny_policy(
        seed=seed, spread=0.0, vocab_size=len(tokenizer), num_key_value_heads=2, **size
    )
    policy.generation_config.eos_token_id = EOS
    return {"policy": policy, "tokenizer": tokenizer}


def digit_reward(
    prompts: Sequence[str], completions: Sequence[str], **_: Any
) -> list[float | None]:
    """1 for the digit alone, half of it for the digit among others."""
    return [
        1.0 if text == prompt[0] else 0.5 * (prompt[0] in text)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def digit_config(output_dir: Path, **fields: Any) -> OnlineConfig:
    """A configuration for the task on which every algorithm learns in seconds."""
    return OnlineConfig.model_validate(
        {
            "model": "passed by the caller",
            "output_dir": output_dir,
            "train_data": ROWS,
            "max_steps": 60,
            "num_prompts": 10,
            "num_generations": 8,
            "max_new_tokens": 3,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "save_steps": 1000,
            "eval_steps": 1000,
            "device": "cpu",
        }
        | fields
    )


def plain_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], temperature: float
) -> torch.Tensor:
    """Log-probs of one completion by one unpadded forward pass: float32 [tokens]."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids).logits[0].float() / temperature
    rows = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logits.log_softmax(-1)[rows, ids[0, len(prompt) :]]


def rollout_of(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Rollout:
    """A rollout of given completions; its log-probs are zeros."""
    width = max(map(len, completions))
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in completions])
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in completions])
    return Rollout(
        prompt_ids=tuple(tuple(prompt) for prompt in prompts),
        completion_ids=ids,
        completion_mask=mask,
        logprobs=torch.zeros(ids.shape),
        draw_logprobs=torch.zeros(ids.shape),
        finish=tuple(FinishReason.STOP for _ in completions),
    )
