"""Between the loop and the monitor: shows it each step, and writes down what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.train.monitor.rules import Action
from rewardsvc.policy_client.train.monitor.watch import Judgement, Observation, Watch, describe
from rewardsvc.policy_client.train.online.sequences import Sequences
from rewardsvc.policy_client.train.run_data import ALARMS_FILE

MAX_TEXTS = 128
"""Completions of a step that are looked at; evenly spaced over all of them."""


class Minder:
    """Watches one online run."""

    def __init__(
        self,
        watch: Watch,
        tokenizer: PreTrainedTokenizerBase,
        output_dir: Path | None,
        *,
        can_raise_kl: bool,
    ) -> None:
        """A minder.

        Args:
            watch: The rules and their state.
            tokenizer: Of the policy.
            output_dir: Where alarms are written; None for nowhere.
            can_raise_kl: Whether the run has a KL penalty that could be raised.
        """
        self._watch = watch
        self._tokenizer = tokenizer
        self._path = None if output_dir is None else output_dir / ALARMS_FILE
        self._can_raise_kl = can_raise_kl

    def describe(self, sequences: Sequences, rewards: Tensor) -> dict[str, float]:
        """Metrics of what the policy wrote, and of how rewards are distributed.

        Args:
            sequences: The step's completions.
            rewards: Of any shape; NaN where there is none.
        """
        if not self._watch.is_on:
            return {}
        num_rows = len(sequences.prompts)
        rows = range(0, num_rows, max(1, math.ceil(num_rows / MAX_TEXTS)))
        tokens = [
            sequences.completion_ids[row, : sequences.completion_lengths[row]].tolist()
            for row in rows
        ]
        return describe(
            Observation(
                metrics={},
                texts=self._tokenizer.batch_decode(tokens, skip_special_tokens=True),
                tokens=tokens,
                prompts=[sequences.prompts[row] for row in rows],
                rewards=[value for value in rewards.flatten().tolist() if math.isfinite(value)],
            )
        )

    def mind(self, step: int, metrics: Mapping[str, float]) -> Judgement:
        """Shows a step's metrics to the rules; alarms go to the run's folder and the log."""
        judgement = self._watch.observe(step, Observation(metrics=metrics))
        if judgement.action is Action.RAISE_KL and not self._can_raise_kl:
            judgement = Judgement(
                metrics=judgement.metrics,
                alarms=judgement.alarms,
                action=Action.WARN,
                alarm=judgement.alarm,
            )
        self.note(judgement)
        return judgement

    def note(self, judgement: Judgement) -> None:
        """Writes alarms to the run's folder; again after a roll-back, which drops later lines."""
        if not judgement.alarms or self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            for alarm in judgement.alarms:
                line = {
                    "step": alarm.step,
                    "since": alarm.since,
                    "rule": alarm.rule.name,
                    "metric": alarm.rule.metric,
                    "number": alarm.number,
                    "action": judgement.action,
                    "text": alarm.text,
                }
                file.write(json.dumps(line) + "\n")
