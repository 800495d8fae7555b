"""Puts a run together: policy, data, rewards, reference, critic, optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.algorithms.presets import AlgorithmSpec
from rewardsvc.policy_client.train.data import Example, Examples, load_examples
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.launch import uses_fsdp
from rewardsvc.policy_client.train.lora import add_adapters
from rewardsvc.policy_client.train.models import load_policy
from rewardsvc.policy_client.train.online.config import OnlineConfig
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.outage import Patience
from rewardsvc.policy_client.train.online.ptx import PtxMix
from rewardsvc.policy_client.train.online.recompute import check_recomputable
from rewardsvc.policy_client.train.online.reference import (
    LocalReference,
    ReferencePolicy,
    RemoteReference,
)
from rewardsvc.policy_client.train.online.rewards import RewardSource
from rewardsvc.policy_client.train.online.sources import build_client, build_sources
from rewardsvc.policy_client.train.online.update import Learner
from rewardsvc.policy_client.train.optim import build_optimizer, build_scheduler
from rewardsvc.policy_client.train.sharding import shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a caller hands in instead of having it built from the configuration.

    Attributes:
        patience: How long a service may be away.
        clients: Closes the clients that are built, when the run ends.
        world: Of this process.
        reward: Where rewards come from; None to build it.
        policy: What learns; None to load it.
        tokenizer: Of `policy`.
        reference: For the KL penalty; None to build it.
    """

    patience: Patience
    clients: ExitStack
    world: World = field(default_factory=World)

    reward: RewardSource | None = None
    policy: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    reference: ReferencePolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The objects of one run.

    Attributes:
        policy: What learns.
        tokenizer: Its tokenizer.
        train: Prompts to learn on.
        held_out: Prompts to evaluate on; empty for no evaluations.
        reward: Where rewards come from.
        reference: None where there is no KL penalty.
        learner: Policy, critic, and their optimizers.
        schedulers: Learning-rate schedules by name of optimizer.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Examples
    held_out: Sequence[Example]
    reward: RewardSource
    reference: ReferencePolicy | None
    learner: Learner
    schedulers: dict[str, LambdaLR]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint saves weights of."""
        critic = self.learner.critic
        return (
            {"policy": self.policy}
            if critic is None
            else {
                "policy": self.policy,
                "critic": critic,
            }
        )

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """What a checkpoint saves moments of."""
        found = {"policy": self.learner.optimizer, "critic": self.learner.critic_optimizer}
        return {name: optimizer for name, optimizer in found.items() if optimizer is not None}


def build_parts(config: OnlineConfig, spec: AlgorithmSpec, given: Given) -> Parts:
    """Builds what is not given. The reference is the policy as it is now: call before a resume.

    Raises:
        ConfigError: If something cannot be loaded, or nothing says where rewards come from.
    """
    train = load_examples(config.train_data).require("prompt")
    held_out: Sequence[Example] = ()
    if config.eval_data is not None:
        found = load_examples(config.eval_data, split="test", limit=config.num_eval_prompts)
        held_out = tuple(found.require("prompt"))
    policy, tokenizer = _policy(config, given)
    reward = given.reward
    if reward is None:
        reward = build_sources(config, given.clients)
        if reward is None:
            raise ConfigError("reward: missing; say where rewards come from, or pass a source")
    # Dropout would make log-probs, and with them ratios, random: the policy stays in eval mode.
    policy.eval()  # type: ignore[no-untyped-call]
    world = given.world
    world.same_weights(policy)
    reference = None
    if spec.needs_reference:
        reference = given.reference or _reference(config, policy, given)
    critic = _critic(config, policy, world) if spec.advantage.needs_critic else None
    if config.activation_checkpointing:
        check_recomputable(policy, with_prompts=True)
    forward = PolicyForward(
        policy,
        temperature=config.temperature,
        entropy_gradient=spec.entropy_coef > 0,
        world=world,
    )
    ptx = _ptx(config, policy, tokenizer, world)
    if uses_fsdp(config.fsdp, world):
        own = reference.model if isinstance(reference, LocalReference) else None
        for module in (policy, critic, own if own is not policy else None):
            if module is not None:
                shard(module)
    learner = Learner(
        forward=forward,
        optimizer=build_optimizer([policy], config),
        critic=critic,
        critic_optimizer=_critic_optimizer(critic, config),
        ptx=ptx,
    )
    parts: dict[str, Any] = {"policy": learner.optimizer, "critic": learner.critic_optimizer}
    return Parts(
        policy=policy,
        tokenizer=tokenizer,
        train=train,
        held_out=held_out,
        reward=reward,
        reference=reference,
        learner=learner,
        schedulers={
            name: build_scheduler(optimizer, config, config.max_steps)
            for name, optimizer in parts.items()
            if optimizer is not None
        },
    )


def eos_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All ids that end a completion, by the tokenizer and by the model's generation settings."""
    generation = getattr(policy, "generation_config", None)
    listed = getattr(generation, "eos_token_id", None)
    ids = set(listed) if isinstance(listed, list) else {listed}
    return {int(number) for number in ids | {tokenizer.eos_token_id} if number is not None}


def _policy(config: OnlineConfig, given: Given) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if (given.policy is None) != (given.tokenizer is None):
        raise ConfigError("policy and tokenizer: pass both, or neither to have them loaded")
    if config.lora is not None and config.lora.dropout > 0:
        raise ConfigError(
            f"lora.dropout: {config.lora.dropout}, but an online policy learns without dropout, "
            "which would make its log-probs random; set 0"
        )
    if given.policy is not None and given.tokenizer is not None:
        if config.lora is not None:
            add_adapters(given.policy, config.lora, learned=())
        return given.policy, given.tokenizer
    return load_policy(config)


def _reference(config: OnlineConfig, policy: PreTrainedModel, given: Given) -> ReferencePolicy:
    if config.reference is None:
        return LocalReference(
            policy,
            temperature=config.temperature,
            max_tokens=config.max_tokens_per_microbatch,
            world=given.world,
        )
    client = build_client(config.reference.address, config.reference.timeout_s)
    return RemoteReference(
        given.clients.enter_context(client),
        config.reference.scorer,
        temperature=config.temperature,
        patience=given.patience,
        world=given.world,
    )


def _ptx(
    config: OnlineConfig,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
) -> PtxMix | None:
    if config.ptx is None:
        return None
    return PtxMix(
        load_examples(config.ptx.data),
        tokenizer,
        PolicyForward(policy),
        coef=config.ptx.coef,
        batch_size=config.ptx.batch_size,
        max_tokens=config.max_tokens_per_microbatch,
        seed=config.seed,
        activation_checkpointing=config.activation_checkpointing,
        world=world,
    )


def _critic(config: OnlineConfig, policy: PreTrainedModel, world: World) -> Critic:
    if config.critic_model is None:
        return Critic.from_policy(policy, world=world)
    try:
        critic = Critic.from_pretrained(config.critic_model, policy, world=world).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"critic_model: {config.critic_model!r} cannot be loaded: {error}"
        ) from error
    if config.lora is not None:
        add_adapters(critic.trunk, config.lora, learned=())
    world.same_weights(critic)
    return critic


def _critic_optimizer(critic: Critic | None, config: OnlineConfig) -> torch.optim.AdamW | None:
    if critic is None:
        return None
    rate = config.critic_learning_rate or config.learning_rate
    return build_optimizer([critic], config.model_copy(update={"learning_rate": rate}))
