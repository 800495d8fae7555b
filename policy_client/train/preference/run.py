"""Runs a preference trainer by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from transformers import set_seed

from rewardsvc.policy_client.train.data import Examples
from rewardsvc.policy_client.train.launch import join_world
from rewardsvc.policy_client.train.models import load_policy
from rewardsvc.policy_client.train.offline import (
    OfflineResult,
    OfflineTask,
    Split,
    load_splits,
    run_offline,
)
from rewardsvc.policy_client.train.preference.config import (
    DpoConfig,
    IpoConfig,
    KtoConfig,
    OrpoConfig,
    PreferenceConfig,
    ReferenceConfig,
    RrhfConfig,
    SimpoConfig,
    SlicConfig,
    SpinConfig,
    SppoConfig,
)
from rewardsvc.policy_client.train.preference.data import PairRow, RowReader
from rewardsvc.policy_client.train.preference.losses import PAIR_ALGORITHMS
from rewardsvc.policy_client.train.preference.own_answers import with_own_answers
from rewardsvc.policy_client.train.preference.tasks import (
    KtoTask,
    Models,
    PairTask,
    RrhfTask,
    Splits,
)

T = TypeVar("T")

PREFERENCE_TRAINERS: Mapping[str, type[PreferenceConfig]] = MappingProxyType(
    {
        "dpo": DpoConfig,
        "ipo": IpoConfig,
        "simpo": SimpoConfig,
        "orpo": OrpoConfig,
        "slic": SlicConfig,
        "sppo": SppoConfig,
        "spin": SpinConfig,
        "kto": KtoConfig,
        "rrhf": RrhfConfig,
    }
)
"""Names of the trainers, and the classes of their configurations."""


def run_preference(name: str, config: PreferenceConfig) -> OfflineResult:
    """Trains a policy on the preferences of `config.train_data`.

    Logs `loss`, `rewards/{chosen,rejected,accuracies,margins}`, `logps/{chosen,rejected}` (KTO:
    `rewards/{desirable,undesirable,accuracies}`, `kl`), and the same with "eval_" before them on
    held-out rows. A tie counts as wrong.

    Args:
        name: A key of `PREFERENCE_TRAINERS`.
        config: Of the class that belongs to it.

    Raises:
        ValueError: If the name is unknown or the configuration is another trainer's.
        ConfigError: If model, tokenizer or data cannot be used; names the field and the fix.
    """
    if name not in PREFERENCE_TRAINERS:
        raise ValueError(f"trainer {name!r} is unknown; use {', '.join(PREFERENCE_TRAINERS)}")
    if not isinstance(config, PREFERENCE_TRAINERS[name]):
        raise ValueError(
            f"{name} is configured by {PREFERENCE_TRAINERS[name].__name__}, "
            f"got {type(config).__name__}"
        )
    join_world(config)
    set_seed(config.seed)
    data = load_splits(config)
    policy, tokenizer = load_policy(config)
    reference = None
    if _needs_reference(name, config):
        assert isinstance(config, ReferenceConfig)
        reference = policy
        if config.reference_model is not None:
            other = config.model_copy(
                update={"model": config.reference_model, "model_config_dict": None, "lora": None}
            )
            reference, _ = load_policy(other)
    models = Models(policy=policy, tokenizer=tokenizer, reference=reference)
    return run_offline(_task(name, config, models, data), config)


def _needs_reference(name: str, config: PreferenceConfig) -> bool:
    if name in PAIR_ALGORITHMS:
        return PAIR_ALGORITHMS[name].needs_reference(config)
    return isinstance(config, ReferenceConfig)


def _task(
    name: str, config: PreferenceConfig, models: Models, data: tuple[Examples, Examples | None]
) -> OfflineTask:
    reader = RowReader(models.tokenizer, config)
    if isinstance(config, KtoConfig):
        return KtoTask(models, _split(data, reader.labelled), config)
    if isinstance(config, RrhfConfig):
        return RrhfTask(models, _split(data, reader.ranked), config)
    if isinstance(config, SpinConfig):
        data = with_own_answers(models, data, config)
    algorithm = PAIR_ALGORITHMS[name]
    rows: Splits[PairRow] = _split(data, reader.pairs)
    return PairTask(
        name,
        models,
        rows,
        config,
        loss=algorithm.loss(config),
        reward=algorithm.reward(config),
    )


def _split(
    data: tuple[Examples, Examples | None], read: Callable[[Examples], list[T]]
) -> dict[Split, list[T]]:
    train, held_out = data
    rows: dict[Split, Any] = {"train": read(train), "eval": []}
    if held_out is not None:
        rows["eval"] = read(held_out)
    return rows
