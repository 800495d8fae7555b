"""The configuration of the online trainers. Nothing here imports torch but the table of presets."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.kl import KlEstimator
from rewardsvc.policy_client.algorithms.presets import PRESETS, AlgorithmSpec, KlPlace
from rewardsvc.policy_client.train.config_base import TrainConfigBase


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServiceRewardConfig(_Section):
    """Rewards of a scorer of a reward service."""

    type: Literal["service"] = "service"
    address: str = Field(
        default="localhost:50051", description="host:port, or several with commas."
    )
    scorer: str = Field(description="The scorer's name in the service.")
    timeout_s: float = Field(
        default=60.0, gt=0, description="Deadline of one call; the client retries within it."
    )


class VerifierRewardConfig(_Section):
    """Rewards of a verifier in this process."""

    type: Literal["verifier"] = "verifier"
    name: Literal["math", "exact", "countdown"] = Field(
        description="math and exact compare with the answer column; countdown reads the columns "
        "numbers and target."
    )


class PythonRewardConfig(_Section):
    """Rewards of a function, called as TRL calls its reward functions."""

    type: Literal["python"] = "python"
    function: str = Field(description="module:function; the module is imported.")


RewardConfig = Annotated[
    ServiceRewardConfig | VerifierRewardConfig | PythonRewardConfig, Field(discriminator="type")
]


class ServiceReferenceConfig(_Section):
    """A reference policy that a reward service hosts."""

    address: str = Field(
        default="localhost:50051", description="host:port, or several with commas."
    )
    scorer: str = Field(description="Name of a scorer of type causal_lm.")
    timeout_s: float = Field(default=60.0, gt=0, description="Deadline of one call.")


class OnlineConfig(TrainConfigBase):
    """One run of PPO, GRPO, RLOO or another row of the table of presets.

    Where a field is None, the algorithm's row in `PRESETS` decides.
    """

    max_steps: int = Field(default=200, ge=1, description="Rollout-and-update steps in all.")

    train_data: str | list[dict[str, Any]] = Field(
        description="File, folder or hub id with a prompt column, or the rows themselves."
    )
    eval_data: str | list[dict[str, Any]] | None = Field(
        default=None, description="Held-out prompts, in the same forms."
    )
    reward: RewardConfig | None = Field(
        default=None, description="Where rewards come from, unless the caller passes a source."
    )

    true_quality: str | None = Field(
        default=None,
        description="Component of the reward to log as true_quality: what the reward stands in "
        "for, where that can be computed.",
    )

    num_prompts: int = Field(default=32, ge=1, description="Prompts per step.")
    num_generations: int | None = Field(default=None, ge=1, description="Completions per prompt.")
    max_new_tokens: int = Field(default=256, ge=1, description="Longest completion, in tokens.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling, and of the policy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample from the likeliest mass.")
    top_k: int = Field(default=0, ge=0, description="Sample from the k likeliest tokens; 0: all.")
    rollout_chunk_prompts: int | None = Field(
        default=None,
        ge=1,
        description="Prompts decoded at once; rewards of a chunk are requested while the next one "
        "is decoded. None: all prompts of a step.",
    )
    mask_truncated_completions: bool = Field(
        default=False, description="Do not learn from completions cut off at max_new_tokens."
    )

    num_epochs: int | None = Field(default=None, ge=1, description="Passes over each rollout.")
    num_minibatches: int | None = Field(default=None, ge=1, description="Optimizer steps per pass.")
    max_tokens_per_microbatch: int = Field(
        default=4096, ge=1, description="Padded tokens in one forward and backward pass."
    )
    clip_eps_low: float | None = Field(
        default=None, ge=0, le=1, description="The ratio's lower bound is 1 - this."
    )
    clip_eps_high: float | None = Field(
        default=None, ge=0, description="The ratio's upper bound is 1 + this."
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="Bound of the loss at negative advantages; None: none."
    )
    loss_aggregation: Aggregation | None = Field(
        default=None, description="How token losses become one number."
    )
    entropy_coef: float = Field(default=0.0, ge=0, description="Weight of the entropy bonus.")
    advantage_eps: float = Field(
        default=1e-4, gt=0, description="Added to a group's standard deviation."
    )

    kl_coef: float | None = Field(
        default=None, ge=0, description="Weight of the KL penalty; 0 needs no reference policy."
    )
    kl_estimator: KlEstimator | None = Field(default=None, description="k1, k2 or k3.")
    kl_place: KlPlace | None = Field(default=None, description="In the reward or in the loss.")
    kl_target: float | None = Field(
        default=None,
        gt=0,
        description="Steer kl_coef to this mean KL per completion, in nats; None keeps it fixed.",
    )
    kl_horizon: int = Field(default=10_000, ge=1, description="Completions; how slowly to steer.")
    reference: ServiceReferenceConfig | None = Field(
        default=None, description="A hosted reference. None: a frozen copy of the initial policy."
    )

    critic_model: str | None = Field(
        default=None, description="Folder or hub id whose trunk the critic starts from."
    )
    critic_learning_rate: float | None = Field(
        default=None, gt=0, description="Peak, of the critic. None: learning_rate."
    )
    value_clip: float | None = Field(
        default=0.2, gt=0, description="How far a value may move in one step; None: any far."
    )
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount per token.")
    lam: float = Field(default=0.95, ge=0, le=1, description="Lambda of GAE.")

    max_missing_reward_share: float = Field(
        default=0.5, ge=0, le=1, description="Stop if more completions than this have no reward."
    )
    missing_reward_window: int = Field(default=20, ge=1, description="Over how many steps.")
    max_service_outage_s: float = Field(
        default=600.0, ge=0, description="How long a service may be away before the run stops."
    )
    reward_threads: int = Field(default=4, ge=1, description="Reward requests in flight.")

    eval_steps: int = Field(default=50, ge=1, description="Steps between evaluations.")
    num_eval_prompts: int = Field(default=256, ge=1, description="Held-out prompts to use at most.")
    success_reward: float = Field(
        default=1.0, description="An evaluated completion counts as right from this reward on."
    )
    num_logged_samples: int = Field(
        default=8, ge=0, description="Completions written to the log at every evaluation."
    )

    @model_validator(mode="after")
    def _micro_batches_are_cut_by_tokens(self) -> OnlineConfig:
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}; online "
                "trainers cut each minibatch by max_tokens_per_microbatch instead: leave it at 1"
            )
        return self


def resolve(algorithm: str, config: OnlineConfig) -> AlgorithmSpec:
    """The algorithm's row with what `config` overrides.

    Raises:
        ConfigError: If there is no such algorithm, or the choices contradict each other.
    """
    if algorithm not in PRESETS:
        raise ConfigError(f"algorithm: {algorithm!r} is none of {', '.join(sorted(PRESETS))}")
    row = PRESETS[algorithm]
    clip = {
        "eps_low": config.clip_eps_low,
        "eps_high": config.clip_eps_high,
        "dual": config.dual_clip,
    }
    columns = {
        "clip": dataclasses.replace(row.clip, **_given(clip)),
        "aggregation": config.loss_aggregation,
        "kl_coef": config.kl_coef,
        "kl_estimator": config.kl_estimator,
        "kl_place": config.kl_place,
        "num_generations": config.num_generations,
        "num_epochs": config.num_epochs,
        "num_minibatches": config.num_minibatches,
    }
    try:
        spec = dataclasses.replace(row, **_given(columns))
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
