"""The loop of every trainer that learns from a fixed data set: SFT, reward models, preferences.

A task says what a batch costs; the loop does the rest: order of the data, micro-batches,
accumulation, clipping, schedule, evaluation, log, checkpoints.

The loss of a step is the mean over all units (tokens, pairs) of its whole batch, however that batch
was cut into micro-batches: averaging the micro-batches' means would weight a token by the length of
its neighbours.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardsvc.policy_client.train.checkpoint import load_checkpoint, save_checkpoint
from rewardsvc.policy_client.train.checkpoint_files import checkpoint_to_resume
from rewardsvc.policy_client.train.config_base import TrainConfigBase
from rewardsvc.policy_client.train.data import Examples, PromptSampler, load_examples
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.launch import join_world, uses_fsdp
from rewardsvc.policy_client.train.models import save_pretrained
from rewardsvc.policy_client.train.online.recompute import check_recomputable, recomputed
from rewardsvc.policy_client.train.optim import build_optimizer, build_scheduler
from rewardsvc.policy_client.train.run_log import open_log
from rewardsvc.policy_client.train.sharding import begin_pass, gathered, is_sharded, shard, whole

Split: TypeAlias = Literal["train", "eval"]

FINAL_FOLDER = "final"


class OfflineConfig(TrainConfigBase):
    """What trainers on a fixed data set have in common."""

    train_data: str = Field(
        description="A .jsonl or .parquet file, a folder with one for each split, or a hub id."
    )
    train_split: str = Field(default="train", description="Which part of `train_data`.")
    eval_data: str | None = Field(
        default=None, description="Held-out rows, as `train_data`. None: see `eval_size`."
    )
    eval_split: str = Field(default="test", description="Which part of `eval_data`.")
    eval_size: int = Field(
        default=0, ge=0, description="Without `eval_data`: rows of `train_data` to hold out."
    )
    num_train_epochs: float = Field(
        default=1.0, gt=0, description="Passes over the data, unless `max_steps` is given."
    )
    per_device_train_batch_size: int = Field(
        default=8, ge=1, description="Rows in one forward and backward pass, in each process."
    )
    per_device_eval_batch_size: int = Field(
        default=16, ge=1, description="Rows in one forward pass of the evaluation."
    )
    max_length: int = Field(
        default=1024, ge=2, description="Tokens of prompt and completion together."
    )
    group_by_length: bool = Field(
        default=False,
        description="Put rows of similar length into one batch: less padding, but batches that are "
        "less alike the data, which can cost more than it saves.",
    )
    eval_steps: int | None = Field(
        default=None,
        ge=1,
        description="Steps from evaluation to evaluation. None: before and after training only.",
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchSums:
    """What one forward pass gives.

    Attributes:
        loss: Scalar with a gradient: the sum over the pass's units.
        metrics: Sums over the same units, by name of metric.
    """

    loss: torch.Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


class OfflineTask(ABC):
    """What one trainer has of its own.

    Attributes:
        name: The algorithm's name in the log.
        model: What learns.
        tokenizer: Saved beside it.
        lengths: Tokens of each row of each split.
        units: What the loss is a mean over: units (tokens, pairs) of each row of each split.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    lengths: Mapping[Split, Sequence[int]]
    units: Mapping[Split, Sequence[int]]

    def begin(self, split: Split, rows: Sequence[int], step: int) -> Mapping[str, float]:
        """Called with all rows of a step, or of an evaluation, before they are cut into passes.

        For what is made of or estimated on the whole batch; most tasks have no such thing. It may
        change `units` of these rows; a step without any is skipped.

        Args:
            split: Which rows.
            rows: Their numbers.
            step: The step, from 1; the last one that was made for an evaluation.

        Returns:
            Metrics of the batch, logged as they are.
        """
        return {}

    def modules(self) -> Mapping[str, nn.Module]:
        """What a checkpoint saves weights of, by name."""
        return {"model": self.model}

    @abstractmethod
    def forward(self, split: Split, rows: Sequence[int]) -> BatchSums:
        """The sums over these rows of a split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineResult:
    """What a run has come to.

    Attributes:
        model_dir: The final model and its tokenizer.
        num_steps: Optimizer steps in all, those before a resume included.
        metrics: Of the last step that this process took; empty if it took none.
        eval_before: Held-out metrics of the start; empty without held-out rows or after a resume.
        eval_after: Held-out metrics of the end; empty without held-out rows.
    """

    model_dir: Path
    num_steps: int
    metrics: Mapping[str, float]
    eval_before: Mapping[str, float]
    eval_after: Mapping[str, float]


def load_splits(config: OfflineConfig) -> tuple[Examples, Examples | None]:
    """Training rows and held-out rows; None where the configuration holds nothing out.

    Rows held out of the training data are drawn with the configuration's seed.

    Raises:
        DataError: If a data set is malformed, or nothing would be left to train on.
    """
    train = load_examples(config.train_data, split=config.train_split)
    if config.eval_data is not None:
        return train, load_examples(config.eval_data, split=config.eval_split)
    if config.eval_size == 0:
        return train, None
    order = PromptSampler(len(train), len(train), config.seed).next_batch()
    held_out, kept = order[: config.eval_size], order[config.eval_size :]
    source = train.source
    return (
        Examples([train[i] for i in sorted(kept)], source=f"{source} without held-out rows"),
        Examples([train[i] for i in sorted(held_out)], source=f"{source}, held-out rows"),
    )


def run_offline(task: OfflineTask, config: OfflineConfig) -> OfflineResult:
    """Trains `task` and saves the final model.

    Raises:
        ConfigError: If the output folder holds another run's checkpoint and `resume` is off.
        ValueError: If a checkpoint to resume from does not fit.
        FloatingPointError: If the gradient is not finite.
        PeerFailedError: If another process of the run has failed.
    """
    world = join_world(config)
    with world.watched():
        return _Loop(task, config, world).run()


class _Loop:
    def __init__(self, task: OfflineTask, config: OfflineConfig, world: World) -> None:
        self._task = task
        self._config = config
        self._world = world
        num_rows = len(task.lengths["train"])
        self._micro_size = config.per_device_train_batch_size
        batch_size = self._micro_size * config.gradient_accumulation_steps * world.size
        self._total_steps = config.max_steps or math.ceil(
            config.num_train_epochs * num_rows / batch_size
        )
        lengths = task.lengths["train"] if config.group_by_length else None
        self._sampler = PromptSampler(num_rows, batch_size, config.seed, lengths=lengths)
        world.same_weights(task.model)
        world.vary_seed(config.seed)
        if config.activation_checkpointing:
            check_recomputable(task.model, with_prompts=False)
        if uses_fsdp(config.fsdp, world):
            shard(task.model)
        self._optimizer = build_optimizer([task.model], config)
        self._scheduler = build_scheduler(self._optimizer, config, self._total_steps)
        self._num_tokens = 0

    def run(self) -> OfflineResult:
        config, task = self._config, self._task
        first = self._resume()
        metrics: dict[str, float] = {}
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        with open_log(
            config.output_dir if self._world.is_main else None,
            algorithm=task.name,
            total_steps=self._total_steps,
            config=config.model_dump(mode="json", by_alias=True),
        ) as log:
            log.rewind(first if first else -1)
            if first == 0:
                before = self._evaluate(0)
                if before:
                    log.step(0, before)
            for step in range(first + 1, self._total_steps + 1):
                started = time.perf_counter()
                metrics = self._train_step(step)
                phases = {"train": time.perf_counter() - started}
                if step == self._total_steps or (
                    config.eval_steps is not None and step % config.eval_steps == 0
                ):
                    started = time.perf_counter()
                    after = self._evaluate(step)
                    phases["evaluate"] = time.perf_counter() - started
                log.step(step, {**metrics, **after} if "evaluate" in phases else metrics, phases)
                if step % config.save_steps == 0 or step == self._total_steps:
                    self._save(step)
            model_dir = save_pretrained(
                task.model, task.tokenizer, config.output_dir / FINAL_FOLDER, world=self._world
            )
        return OfflineResult(
            model_dir=model_dir,
            num_steps=self._total_steps,
            metrics=metrics,
            eval_before=before,
            eval_after=after or self._evaluate(self._total_steps),
        )

    def _train_step(self, step: int) -> dict[str, float]:
        task, config = self._task, self._config
        lengths, units = task.lengths["train"], task.units["train"]
        rows = sorted(self._sampler.next_batch(), key=lambda row: lengths[row])
        with gathered(task.model):
            made = task.begin("train", rows, step)
        num_units = sum(units[row] for row in rows)
        learning_rate = float(self._optimizer.param_groups[0]["lr"])
        self._num_tokens += sum(lengths[row] for row in rows)
        always = {
            **made,
            "learning_rate": learning_rate,
            "num_tokens": float(self._num_tokens),
            "epoch": self._sampler.epoch,
        }
        if not num_units:
            self._optimizer.step()  # without gradients it changes nothing, not even by decay
            self._scheduler.step()
            return {**always, "skipped": 1.0}
        sums: dict[str, float] = {}
        task.model.train()
        for micro, counts in self._micro_batches(rows, units):
            begin_pass(task.model)
            with recomputed(task.model) if config.activation_checkpointing else nullcontext():
                found = task.forward("train", micro)
            loss = found.loss / num_units if counts else 0.0 * found.loss
            loss.backward()  # type: ignore[no-untyped-call]
            if counts:
                _add(sums, {"loss": found.loss.item(), **found.metrics})
        task.model.eval()  # type: ignore[no-untyped-call]
        sums = self._total(sums)
        self._world.sum_gradients(task.model.parameters())
        norm = nn.utils.clip_grad_norm_(task.model.parameters(), config.max_grad_norm)
        grad_norm = whole(norm).item()
        if not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"step {step}: the gradient is {grad_norm}; "
                f"lower learning_rate (now {config.learning_rate}) or use dtype: float32"
            )
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {
            **{name: total / num_units for name, total in sums.items()},
            "grad_norm": grad_norm,
            **always,
        }

    def _micro_batches(
        self, rows: Sequence[int], units: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], bool]]:
        """This process's share of the rows that have units, cut into passes.

        Whether a pass counts is said beside it: weights that are divided come together for all
        processes at once, so one that has run out of rows runs with the others, on any.
        """
        size, world = self._micro_size, self._world
        left = [row for row in rows if units[row]]
        # Rows are sorted by length: dealt out like cards, each process has about as many tokens.
        mine = left[world.rank :: world.size]
        for start in range(0, len(mine), size):
            yield mine[start : start + size], True
        if is_sharded(self._task.model):
            num_rounds = math.ceil(len(left[:: world.size]) / size)
            for _ in range(math.ceil(len(mine) / size), num_rounds):
                yield left[:1], False

    def _total(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Of all processes."""
        total: dict[str, float] = {}
        for part in self._world.gather(dict(sums)):
            _add(total, part)
        return total

    @torch.no_grad()
    def _evaluate(self, step: int) -> dict[str, float]:
        """Held-out means, under the names of the training metrics with "eval_" before them."""
        task = self._task
        lengths = task.lengths["eval"]
        if not lengths:
            return {}
        rows = sorted(range(len(lengths)), key=lambda row: lengths[row])
        size, world = self._config.per_device_eval_batch_size, self._world
        sums: dict[str, float] = {}
        with gathered(task.model):
            found = dict(task.begin("eval", rows, step))
            units = task.units["eval"]
            rows = [row for row in rows if units[row]]
            for start in range(world.rank * size, len(rows), world.size * size):
                part = task.forward("eval", rows[start : start + size])
                _add(sums, {"loss": part.loss.item(), **part.metrics})
        sums = self._total(sums)
        num_units = sum(units)
        found |= {name: total / num_units for name, total in sums.items()}
        return {f"eval_{name}": value for name, value in found.items()}

    def _resume(self) -> int:
        """Loads what the configuration says to resume from, and gives the steps done."""
        path = checkpoint_to_resume(self._config.output_dir, self._config.resume, self._world)
        if path is None:
            return 0
        loaded = load_checkpoint(path, **self._parts(), world=self._world)
        self._sampler.load_state_dict(loaded.state["sampler"])
        self._num_tokens = int(loaded.state["num_tokens"])
        if loaded.step > self._total_steps:
            raise ValueError(
                f"resume: {path} has {loaded.step} steps, and this run {self._total_steps}; "
                "raise max_steps or num_train_epochs"
            )
        return loaded.step

    def _save(self, step: int) -> None:
        save_checkpoint(
            self._config.output_dir,
            step,
            **self._parts(),
            state={"sampler": self._sampler.state_dict(), "num_tokens": self._num_tokens},
            world=self._world,
            keep=self._config.save_total_limit,
        )

    def _parts(self) -> dict[str, Any]:
        return {
            "modules": dict(self._task.modules()),
            "optimizers": {"optimizer": self._optimizer},
            "schedulers": {"scheduler": self._scheduler},
        }


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value
