"""Step labels without people: how often rollouts that start from a step end right.

From each prefix of a solution's steps the policy finishes the solution several times, and a
verifier looks at the ends. A step from which many rollouts succeed is a good one. What comes out
are the labels that the `prm` trainer learns from.

Source: Wang et al. 2023, "Math-Shepherd", arXiv:2312.08935, section 3.3: hard labels are 1 if any
rollout succeeds (equation 3), soft labels the share of those that do (equation 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.train.data import Example
from rewardsvc.policy_client.train.data.tokenize import tokenize_prompt
from rewardsvc.policy_client.train.online.rewards import RewardRequest, RewardSource
from rewardsvc.policy_client.train.online.rollout import RolloutEngine
from rewardsvc.policy_client.train.online.sampling import SamplingParams

SUCCESS = 0.5
"""A rollout with a reward above it is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A solution whose steps are to be labelled.

    Attributes:
        example: Its prompt and what the verifier checks against.
        steps: Its steps, in order.
    """

    example: Example
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSettings:
    """How steps are labelled.

    Attributes:
        num_rollouts: Completions from each step.
        mode: "soft", the share of rollouts that succeed, or "hard", whether any does.
        separator: Between steps, and behind the last one before a rollout starts.
        batch_size: Prefixes to complete at a time.
    """

    num_rollouts: int = 8
    mode: Literal["soft", "hard"] = "soft"
    separator: str = "\n"
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("num_rollouts", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class StepLabeller:
    """Labels steps with a policy and a verifier."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardSource,
        sampling: SamplingParams,
        *,
        settings: LabelSettings | None = None,
    ) -> None:
        """A labeller.

        Args:
            engine: Completes prefixes.
            tokenizer: The policy's.
            reward: Rewards whole solutions: above 1/2 is right.
            sampling: How rollouts are drawn.
            settings: The rest.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._reward = reward
        self._sampling = sampling
        self._settings = settings or LabelSettings()

    def label(
        self, solutions: Sequence[Solution], generator: torch.Generator | None = None
    ) -> list[list[float | None]]:
        """One label for each step of each solution, in [0, 1].

        The last step needs no rollout: the solution itself is verified. Rollouts without a reward
        do not count; a step of which none has one gets None, which the `prm` trainer leaves out.

        Raises:
            UnavailableError: If the reward source is away.
            ValueError: If a solution has no steps.
        """
        for index, solution in enumerate(solutions):
            if not solution.steps:
                raise ValueError(f"solutions[{index}] has no steps; leave it out")
        labels: list[list[float | None]] = [[None] * len(found.steps) for found in solutions]
        self._label_last_steps(solutions, labels)
        prefixes = [
            (index, upto)
            for index, solution in enumerate(solutions)
            for upto in range(1, len(solution.steps))
        ]
        size = self._settings.batch_size
        for start in range(0, len(prefixes), size):
            batch = prefixes[start : start + size]
            texts = [self._prefix(solutions[index], upto) for index, upto in batch]
            for (index, upto), label in zip(
                batch,
                self._rollout_labels([solutions[i].example for i, _ in batch], texts, generator),
                strict=True,
            ):
                labels[index][upto - 1] = label
        return labels

    def _label_last_steps(
        self, solutions: Sequence[Solution], labels: list[list[float | None]]
    ) -> None:
        texts = [self._settings.separator.join(solution.steps) for solution in solutions]
        values = self._reward.score(
            RewardRequest(
                examples=[solution.example for solution in solutions],
                completions=texts,
                completion_ids=[self._encode(text) for text in texts],
            )
        ).values
        for row, value in zip(labels, values.tolist(), strict=True):
            row[-1] = None if np.isnan(value) else float(value > SUCCESS)

    def _rollout_labels(
        self,
        examples: Sequence[Example],
        prefixes: Sequence[str],
        generator: torch.Generator | None,
    ) -> Iterator[float | None]:
        num_rollouts = self._settings.num_rollouts
        prompts = [
            tokenize_prompt(self._tokenizer, example.prompt) + self._encode(prefix)
            for example, prefix in zip(examples, prefixes, strict=True)
        ]
        rollout = self._engine.generate(prompts, num_rollouts, self._sampling, generator)
        ends = rollout.completion_lists()
        texts = self._tokenizer.batch_decode(ends, skip_special_tokens=True)
        group_of = [row // num_rollouts for row in range(len(texts))]
        values = self._reward.score(
            RewardRequest(
                examples=[examples[group] for group in group_of],
                completions=[
                    prefixes[group] + text for group, text in zip(group_of, texts, strict=True)
                ],
                completion_ids=[
                    self._encode(prefixes[group]) + end
                    for group, end in zip(group_of, ends, strict=True)
                ],
            )
        ).values
        lost = rollout.aborted.cpu().numpy()
        for row in np.where(lost, np.nan, values).reshape(-1, num_rollouts):
            known = row[~np.isnan(row)]
            if not len(known):
                yield None
            elif self._settings.mode == "hard":
                yield float((known > SUCCESS).any())
            else:
                yield float((known > SUCCESS).mean())

    def _prefix(self, solution: Solution, upto: int) -> str:
        separator = self._settings.separator
        return separator.join(solution.steps[:upto]) + separator

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
