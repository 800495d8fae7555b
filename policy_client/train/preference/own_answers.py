"""SPIN's opponents: the policy's own completions of the data's prompts, before it learns."""

from __future__ import annotations

from dataclasses import replace

import torch

from rewardsvc.policy_client.train.data import DataError, Example, Examples
from rewardsvc.policy_client.train.data.tokenize import tokenize_prompt
from rewardsvc.policy_client.train.online.build import eos_ids
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.preference.config import SpinConfig
from rewardsvc.policy_client.train.preference.tasks import Models


def with_own_answers(
    models: Models, data: tuple[Examples, Examples | None], config: SpinConfig
) -> tuple[Examples, Examples | None]:
    """Rows with `chosen`, the data's completion, and `rejected`, one that the policy made now.

    Rows that have both already stay as they are. Drawn with the configuration's seed: a resumed run
    draws the same, since it starts from the same policy.

    Raises:
        DataError: If a row has neither a completion nor a pair.
    """
    generator = torch.Generator().manual_seed(config.seed)
    train, held_out = data
    return (
        _complete(models, train, config, generator),
        None if held_out is None else _complete(models, held_out, config, generator),
    )


def _complete(
    models: Models, examples: Examples, config: SpinConfig, generator: torch.Generator
) -> Examples:
    rows = list(examples)
    wanted = [index for index, row in enumerate(rows) if row.rejected is None]
    if not wanted:
        return examples
    Examples([rows[index] for index in wanted], source=examples.source).require(
        "prompt", "completion"
    )
    tokenizer = models.tokenizer
    engine = TransformersRollout(
        models.policy, eos_ids=eos_ids(models.policy, tokenizer), pad_id=models.pad_token_id
    )
    sampling = SamplingParams(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    for start in range(0, len(wanted), config.generation_batch_size):
        batch = wanted[start : start + config.generation_batch_size]
        prompts = [_prompt_ids(models, rows[index]) for index in batch]
        rollout = engine.generate(prompts, 1, sampling, generator)
        texts = tokenizer.batch_decode(rollout.completion_lists(), skip_special_tokens=True)
        for index, text in zip(batch, texts, strict=True):
            rows[index] = replace(
                rows[index], chosen=rows[index].completion, rejected=_like(rows[index], text)
            )
    return Examples(rows, source=examples.source)


def _prompt_ids(models: Models, row: Example) -> list[int]:
    try:
        return tokenize_prompt(models.tokenizer, row.prompt)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


def _like(row: Example, text: str) -> str | list[dict[str, str]]:
    """The text in the form of the row's own completion."""
    if isinstance(row.completion, str):
        return text
    return [{"role": "assistant", "content": text}]
