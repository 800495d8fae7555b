"""Runs a trainer that selects from the policy's own completions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.launch import check_patience, join_world
from rewardsvc.policy_client.train.lora import add_adapters
from rewardsvc.policy_client.train.models import load_policy
from rewardsvc.policy_client.train.offline import OfflineResult, load_splits, run_offline
from rewardsvc.policy_client.train.online.rewards import RewardSource
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.online.sources import build_reward_source
from rewardsvc.policy_client.train.selection.config import (
    OnlineDpoConfig,
    RaftConfig,
    SelectionConfig,
)
from rewardsvc.policy_client.train.selection.sampled import CandidateSource
from rewardsvc.policy_client.train.selection.tasks import (
    OnlinePairTask,
    RaftTask,
    SelectionTask,
)

SELECTION_TRAINERS: Mapping[str, type[SelectionConfig]] = MappingProxyType(
    {"online_dpo": OnlineDpoConfig, "raft": RaftConfig}
)
"""Names of the trainers, and the classes of their configurations."""


def run_selection(
    name: str,
    config: SelectionConfig,
    *,
    reward: RewardSource | None = None,
    policy: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> OfflineResult:
    """Trains a policy on a selection of what it says itself.

    Logs `reward`, `reward_std`, `rewards/missing`, `completions/*`, `selection/used_prompts` (the
    share of prompts that gave something to learn) and `loss`; online DPO also
    `rewards/{accuracies,margins}` of its pairs. The same with "eval_" before them on held-out
    prompts. A step in which no prompt gave anything is skipped, and logged as such.

    Args:
        name: A key of `SELECTION_TRAINERS`.
        config: Of the class that belongs to it.
        reward: In place of the configuration's.
        policy: In place of the configuration's `model`, together with `tokenizer`.
        tokenizer: See `policy`.

    Raises:
        ValueError: If the name is unknown or the configuration is another trainer's.
        ConfigError: If model, data or reward cannot be used; names the field and the fix.
        OutageError: If a reward service stays away for longer than allowed.
    """
    if name not in SELECTION_TRAINERS:
        raise ValueError(f"trainer {name!r} is unknown; use {', '.join(SELECTION_TRAINERS)}")
    if not isinstance(config, SELECTION_TRAINERS[name]):
        raise ValueError(
            f"{name} is configured by {SELECTION_TRAINERS[name].__name__}, "
            f"got {type(config).__name__}"
        )
    if (policy is None) != (tokenizer is None):
        raise ConfigError("policy and tokenizer: pass both, or neither to have them loaded")
    world = join_world(config)
    check_patience(world, config.collective_timeout_s, config.max_service_outage_s)
    set_seed(config.seed)
    data = load_splits(config)
    for split in data:
        if split is not None:
            split.require("prompt")
    if policy is None or tokenizer is None:
        policy, tokenizer = load_policy(config)
    elif config.lora is not None:
        add_adapters(policy, config.lora, learned=())
    with ExitStack() as clients:
        if reward is None:
            if config.reward is None:
                raise ConfigError("reward: missing; say where rewards come from, or pass a source")
            reward = build_reward_source(config.reward, clients)
        source = CandidateSource(
            policy,
            tokenizer,
            reward,
            SamplingParams(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
            num_generations=config.num_generations,
            max_outage_s=config.max_service_outage_s,
            seed=config.seed,
            seed_each=config.seed_each_completion,
        )
        task: SelectionTask
        if isinstance(config, OnlineDpoConfig):
            task = OnlinePairTask(policy, tokenizer, data, source, config)
        else:
            assert isinstance(config, RaftConfig)  # there are two
            task = RaftTask(policy, tokenizer, data, source, config)
        return run_offline(task, config)
