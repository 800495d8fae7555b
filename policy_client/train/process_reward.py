"""Process reward models: a classifier that is read where each step ends.

Rows have `prompt`, `completions` (the steps) and `labels` (one for each: true, false, or the
probability that it is right; null where nobody knows). Layout and head are those of TRL's
`PRMTrainer`, which is gone from TRL: prompt, then every step with a separator behind it, all
tokenised apart; two labels a token, read at the separator's last token. The service hosts the
result as

    {type: prm, model: …, step_token: "\\n", step_separator: "\\n", assembly: tokens}

Legend: B rows, T tokens, S labelled steps of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rewardsvc.policy_client.algorithms.process_losses import step_loss
from rewardsvc.policy_client.train.data import DataError, Example, Examples
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair, pad_right, prompt_to_text
from rewardsvc.policy_client.train.launch import join_world
from rewardsvc.policy_client.train.models import load_process_reward_model
from rewardsvc.policy_client.train.offline import (
    BatchSums,
    OfflineConfig,
    OfflineResult,
    OfflineTask,
    Split,
    load_splits,
    run_offline,
)

PrmResult: TypeAlias = OfflineResult

logger = logging.getLogger(__name__)

RIGHT = 1
"""The label of a right step, which the service's `prm` reads by default."""


class PrmTrainConfig(OfflineConfig):
    """A process reward model. `model` may be a policy: it gives the body, the head is new."""

    step_separator: str = Field(
        default="\n",
        min_length=1,
        description="Written behind every step; its last token is where the head is read.",
    )
    last_step_only: bool = Field(
        default=False,
        description="Learn from the last step's label alone, which makes an outcome model.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One solution.

    Attributes:
        input_ids: Token ids of prompt, steps and separators.
        positions: Where the head is read, one place for each labelled step.
        labels: Probability that the step is right.
    """

    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    labels: tuple[float, ...]


def run_prm(config: PrmTrainConfig) -> PrmResult:
    """Trains a process reward model on the steps of `config.train_data`.

    Logs `loss`, `accuracy` (of steps, against labels rounded to right or wrong) and
    `rewards/{right,wrong}` weighted by how many there are, and the same with "eval_" before them.

    Raises:
        ConfigError: If model, tokenizer or data cannot be used; names the field and the fix.
    """
    join_world(config)
    set_seed(config.seed)
    train, held_out = load_splits(config)
    model, tokenizer = load_process_reward_model(config)
    task = _PrmTask(config, model, tokenizer, (train, held_out))
    return run_offline(task, config)


class _PrmTask(OfflineTask):
    """One row is one solution; units are its labelled steps."""

    name = "prm"

    def __init__(
        self,
        config: PrmTrainConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Examples, Examples | None],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        train, held_out = data
        self._rows: dict[Split, list[StepRow]] = {
            "train": step_rows(train, tokenizer, config),
            "eval": step_rows(held_out, tokenizer, config) if held_out is not None else [],
        }
        self.lengths: Mapping[Split, Sequence[int]] = {
            split: [len(row.input_ids) for row in rows] for split, rows in self._rows.items()
        }
        self.units: Mapping[Split, Sequence[int]] = {
            split: [len(row.labels) for row in rows] for split, rows in self._rows.items()
        }

    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        """See `OfflineTask`."""
        found = [self._rows[split][row] for row in rows]
        batch = pad_right(
            [TokenizedPair(input_ids=list(row.input_ids), num_prompt_tokens=0) for row in found],
            pad_token_id=int(self.tokenizer.pad_token_id),
            device=self.model.device,
        )
        logits_BT2 = self.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).logits
        row_S = [index for index, row in enumerate(found) for _ in row.positions]
        position_S = [position for row in found for position in row.positions]
        label_S = torch.tensor(
            [label for row in found for label in row.labels], device=logits_BT2.device
        )
        logits_S2 = logits_BT2[row_S, position_S]
        loss_S = step_loss(logits_S2, label_S)
        right_S = logits_S2.detach().float().softmax(-1)[:, RIGHT]
        return BatchSums(
            loss=loss_S.sum(),
            metrics={
                "accuracy": float(((right_S > 0.5) == (label_S > 0.5)).sum()),
                "reward": float(right_S.sum()),
                "label": float(label_S.sum()),
            },
        )


def step_rows(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PrmTrainConfig
) -> list[StepRow]:
    """Token ids of all rows. One that is longer than `max_length` is cut off behind its last whole
    step; one of which no labelled step is left is dropped.

    Raises:
        DataError: If a row is malformed or nothing is left.
    """
    separator = tokenizer.encode(config.step_separator, add_special_tokens=False)
    if not separator:
        raise DataError(
            f"step_separator: {config.step_separator!r} has no token in this tokenizer; use another"
        )
    rows = [_step_row(example, tokenizer, separator, config) for example in examples]
    kept = [row for row in rows if row is not None]
    if not kept:
        raise DataError(
            f"max_length: {config.max_length} tokens leave no labelled step in any of the "
            f"{len(examples)} rows of {examples.source}; raise it, or look at the labels"
        )
    if len(kept) < len(rows):
        logger.warning(
            "%d of %d rows of %s have no labelled step within %d tokens and are dropped",
            len(rows) - len(kept),
            len(rows),
            examples.source,
            config.max_length,
        )
    return kept


def _step_row(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    separator: list[int],
    config: PrmTrainConfig,
) -> StepRow | None:
    steps, labels = _steps_of(example)
    try:
        text = prompt_to_text(tokenizer, example.prompt)
    except DataError as error:
        raise DataError(f"{example.where}: {error}") from error
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    places: list[tuple[int, float]] = []
    for number, (step, label) in enumerate(zip(steps, labels, strict=True), 1):
        more = [*tokenizer.encode(step, add_special_tokens=False), *separator]
        if len(ids) + len(more) > config.max_length:
            break
        ids += more
        if label is not None and (number == len(steps) or not config.last_step_only):
            places.append((len(ids) - 1, label))
    if not places:
        return None
    return StepRow(
        input_ids=tuple(ids),
        positions=tuple(place for place, _ in places),
        labels=tuple(label for _, label in places),
    )


def _steps_of(example: Example) -> tuple[list[str], list[float | None]]:
    steps, labels = example.metadata.get("completions"), example.metadata.get("labels")
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
        raise DataError(
            f"{example.where}: column 'completions': a list of steps is needed, got {steps!r}"
        )
    if not isinstance(labels, list | tuple) or len(labels) != len(steps) or not steps:
        raise DataError(
            f"{example.where}: column 'labels': one for each of the {len(steps)} steps is needed, "
            f"got {labels!r}"
        )
    return list(steps), [_label(example, label) for label in labels]


def _label(example: Example, label: Any) -> float | None:
    if label is None:
        return None
    if not isinstance(label, bool | int | float) or not 0.0 <= label <= 1.0:
        raise DataError(
            f"{example.where}: column 'labels': true, false, null or a probability is needed, "
            f"got {label!r}"
        )
    return float(label)
