"""Several rewards become one: normalised, weighed against each other, held to constraints.

What moves over the run (running moments, ideal points, multipliers) is part of every checkpoint.

Legend: K objectives, C constraints, N completions, P prompts with G completions each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.algorithms.normalise import (
    RewardNorm,
    RunningMoments,
    normalised_rewards,
)
from rewardsvc.policy_client.algorithms.scalarise import (
    Constraint,
    chebyshev,
    lagrangian,
    weighted_sum_of_rewards,
)
from rewardsvc.policy_client.train.online.objectives_config import ObjectivesConfig
from rewardsvc.policy_client.train.online.rewards import Rewards

TOTAL = "reward"
"""Name of the reward source's own value, among its components."""

LENGTH = "length"
"""Name of the completion's number of tokens, among the components."""


class Objectives:
    """Makes one reward of the components that a configuration names."""

    def __init__(self, config: ObjectivesConfig, *, num_generations: int) -> None:
        """Starts without a memory.

        Args:
            config: What to combine, and how.
            num_generations: G.
        """
        self._config = config
        self._num_generations = num_generations
        self._moments = {name: RunningMoments() for name in config.rewards}
        self._ideals: dict[str, float] = {}
        self._constraints = {
            name: Constraint(
                limit=part.limit,
                at_least=part.at_least is not None,
                learning_rate=part.learning_rate,
                max_multiplier=part.max_multiplier,
            )
            for name, part in config.constraints.items()
        }
        self._multipliers = {name: part.initial for name, part in config.constraints.items()}

    def combine(
        self, rewards: Rewards, lengths_N: NDArray[np.float32]
    ) -> tuple[Rewards, dict[str, float]]:
        """One reward per completion, and what to log; takes a step of all that moves.

        The multipliers that a batch meets are those from before it: the batch then moves them.

        Args:
            rewards: As the source gave them.
            lengths_N: float32 [N], tokens of each completion.

        Raises:
            ConfigError: If an objective or a constraint names a component that no completion of a
                batch with rewards has.
        """
        config = self._config
        columns_KN = torch.stack(
            [
                self._scaled(name, self._column(part.source or name, rewards, lengths_N))
                for name, part in config.rewards.items()
            ]
        )
        weights_K = torch.tensor([part.weight for part in config.rewards.values()]).double()
        if config.scalarise == "chebyshev":
            total_N = chebyshev(columns_KN, weights_K, self._ideals_of(columns_KN))
        else:
            skip = config.missing == "skip"
            total_N = weighted_sum_of_rewards(columns_KN, weights_K, skip_missing=skip)
        metrics: dict[str, float] = {}
        if self._constraints:
            total_N = self._held(total_N, rewards, lengths_N, metrics)
        combined = dataclasses.replace(rewards, values=total_N.numpy().astype(np.float32))
        return combined, metrics

    def state_dict(self) -> dict[str, Any]:
        """All that moves; JSON values."""
        return {
            "moments": {name: dataclasses.asdict(one) for name, one in self._moments.items()},
            "ideals": dict(self._ideals),
            "multipliers": dict(self._multipliers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self._moments = {name: RunningMoments(**one) for name, one in state["moments"].items()}
        self._ideals = dict(state["ideals"])
        self._multipliers = dict(state["multipliers"])

    def _column(self, name: str, rewards: Rewards, lengths_N: NDArray[np.float32]) -> Tensor:
        """float64 [N]: the component `name`."""
        if name == LENGTH:
            column = lengths_N
        elif name == TOTAL:
            column = rewards.values
        else:
            column = rewards.component(name)
            if np.isnan(column).all() and not np.isnan(rewards.values).all():
                known = ", ".join([TOTAL, LENGTH, *rewards.components])
                raise ConfigError(
                    f"objectives: no completion has a component {name!r}; there are {known}"
                )
        return torch.from_numpy(column).double()

    def _scaled(self, name: str, column_N: Tensor) -> Tensor:
        norm = self._config.rewards[name].normalise
        if norm is RewardNorm.RUNNING:
            self._moments[name] = self._moments[name].updated(column_N)
        width = self._num_generations if norm is RewardNorm.GROUP else len(column_N)
        scaled = normalised_rewards(column_N.view(-1, width), norm, self._moments[name])
        return scaled.flatten()

    def _ideals_of(self, columns_KN: Tensor) -> Tensor:
        """float64 [K]: as configured, or the best values seen so far."""
        ideals = []
        for (name, part), column in zip(self._config.rewards.items(), columns_KN, strict=True):
            present = column[column.isfinite()]
            best = float(present.max()) if present.numel() else -math.inf
            best = max(best, self._ideals.get(name, best))
            if math.isfinite(best):
                self._ideals[name] = best
            ideals.append(part.ideal if part.ideal is not None else self._ideals.get(name, 0.0))
        return torch.tensor(ideals).double()

    def _held(
        self,
        total_N: Tensor,
        rewards: Rewards,
        lengths_N: NDArray[np.float32],
        metrics: dict[str, float],
    ) -> Tensor:
        """The Lagrangian of `total_N` and the constraints; moves the multipliers."""
        columns = {
            name: self._column(part.source or name, rewards, lengths_N)
            for name, part in self._config.constraints.items()
        }
        violations_CN = torch.stack(
            [self._constraints[name].violation(column) for name, column in columns.items()]
        )
        multipliers_C = torch.tensor(list(self._multipliers.values())).double()
        held_N = lagrangian(total_N, violations_CN, multipliers_C)
        for (name, column), violation_N in zip(columns.items(), violations_CN, strict=True):
            present = violation_N[violation_N.isfinite()]
            metrics[f"constraints/{name}/multiplier"] = self._multipliers[name]
            if present.numel():
                metrics[f"constraints/{name}/violation"] = float(present.mean())
            self._multipliers[name] = self._constraints[name].updated(
                self._multipliers[name], column
            )
        return held_N
