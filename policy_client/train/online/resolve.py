"""From an algorithm's name and a configuration to the row that the run takes."""

from __future__ import annotations

import dataclasses
from typing import Any

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.algorithms.compat import preset
from rewardsvc.policy_client.algorithms.presets import PRESETS
from rewardsvc.policy_client.algorithms.spec import AlgorithmSpec
from rewardsvc.policy_client.train.online.config import OnlineConfig

COLUMN_OF_FIELD = {
    "advantage": "advantage",
    "advantage_eps": "std_eps",
    "advantage_whitening": "whitening",
    "gamma": "gamma",
    "lam": "lam",
    "baseline_decay": "baseline_decay",
    "outcome_weight": "outcome_weight",
    "process_weight": "process_weight",
    "ratio": "ratio",
    "loss_aggregation": "aggregation",
    "kl_place": "kl_place",
    "kl_estimator": "kl_estimator",
    "kl_clamps": "kl_clamps",
    "kl_coef": "kl_coef",
    "kl_target": "kl_target",
    "kl_rule": "kl_rule",
    "entropy_coef": "entropy_coef",
    "mask_zero_std_groups": "mask_zero_std",
    "dynamic_sampling": "dynamic_sampling",
    "num_generations": "num_generations",
    "num_epochs": "num_epochs",
    "num_minibatches": "num_minibatches",
}
"""Fields of the configuration that replace a column of the row, where they are not None."""


def row_values(algorithm: str) -> dict[str, Any]:
    """What the algorithm's row has for each field that may be None, by field.

    Raises:
        KeyError: If there is no such algorithm.
    """
    row = PRESETS[algorithm]
    return {
        **{field: getattr(row, column) for field, column in COLUMN_OF_FIELD.items()},
        "clip_eps_low": row.clip.eps_low,
        "clip_eps_high": row.clip.eps_high,
        "dual_clip": row.clip.dual,
        "importance_sampling": row.importance.mode,
        "importance_sampling_min": row.importance.low,
        "importance_sampling_max": row.importance.high,
        "overlong_cache_tokens": f"{row.overlong_share:g} of max_new_tokens",
    }


def resolve(algorithm: str, config: OnlineConfig) -> AlgorithmSpec:
    """The algorithm's row with what `config` overrides.

    Raises:
        ConfigError: If there is no such algorithm, or the choices contradict each other.
    """
    if algorithm not in PRESETS:
        raise ConfigError(f"algorithm: {algorithm!r} is none of {', '.join(sorted(PRESETS))}")
    row = preset(algorithm, config.compat)
    clip = {
        "eps_low": config.clip_eps_low,
        "eps_high": config.clip_eps_high,
        "dual": config.dual_clip,
    }
    importance = {
        "mode": config.importance_sampling,
        "low": config.importance_sampling_min,
        "high": config.importance_sampling_max,
    }
    columns = {column: getattr(config, field) for field, column in COLUMN_OF_FIELD.items()}
    try:
        spec = dataclasses.replace(
            row,
            clip=dataclasses.replace(row.clip, **_given(clip)),
            importance=dataclasses.replace(row.importance, **_given(importance)),
            **_given(columns),
        )
    except ValueError as error:
        raise ConfigError(f"{algorithm}: {error}") from error
    num_completions = config.num_prompts * spec.num_generations
    if spec.num_minibatches > num_completions:
        raise ConfigError(
            f"num_minibatches: {spec.num_minibatches}, and a step has {num_completions} "
            "completions; lower it"
        )
    return spec


def _given(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}
