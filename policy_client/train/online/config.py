"""The configuration of the online trainers. Nothing here imports torch but the algorithms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.compat import Compat
from rewardsvc.policy_client.algorithms.importance import IsMode
from rewardsvc.policy_client.algorithms.kl import KlClamps, KlEstimator
from rewardsvc.policy_client.algorithms.kl_control import KlRule
from rewardsvc.policy_client.algorithms.masking import Whitening
from rewardsvc.policy_client.algorithms.policy_loss import RatioLevel
from rewardsvc.policy_client.algorithms.spec import AdvantageEstimator, AlgorithmSpec, KlPlace
from rewardsvc.policy_client.train.config_base import TrainConfigBase
from rewardsvc.policy_client.train.monitor.config import MonitorConfig
from rewardsvc.policy_client.train.online.objectives_config import ObjectivesConfig


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


class PtxConfig(_Section):
    """Ordinary text that is mixed into every optimiser step."""

    data: str | list[dict[str, Any]] = Field(
        description="File, folder or hub id with columns prompt and completion, or the rows."
    )
    coef: float = Field(gt=0, description="Weight of its mean loss per token.")
    batch_size: int = Field(default=32, ge=1, description="Examples in each optimiser step.")


class OnlineConfig(TrainConfigBase):
    """One run of PPO, GRPO, RLOO or another row of the table of presets.

    Where a field is None, the algorithm's row in `PRESETS` decides.
    """

    compat: Compat | None = Field(
        default=None,
        description="paper, trl, verl or openrlhf: the row as it is there, where that differs.",
    )

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

    objectives: ObjectivesConfig | None = Field(
        default=None,
        description="Several components of the reward as one, with weights, normalising and "
        "constraints. None: the reward's own value.",
    )
    process_reward: RewardConfig | None = Field(
        default=None,
        description="Where process rewards come from, if not from `reward` itself.",
    )
    process_weight: float | None = Field(
        default=None, ge=0, description="Weight of process rewards; above 0 they are needed."
    )
    outcome_weight: float | None = Field(
        default=None, ge=0, description="Weight of the reward itself beside process rewards."
    )
    step_separator: str = Field(
        default="\n\n",
        min_length=1,
        description="Text between steps; that of the process reward model.",
    )
    overlong_cache_tokens: int | None = Field(
        default=None,
        ge=0,
        description="The last so many tokens before max_new_tokens cost a penalty; 0: none.",
    )
    overlong_penalty: float = Field(
        default=1.0, gt=0, description="The penalty at max_new_tokens, in units of reward."
    )

    num_prompts: int = Field(default=32, ge=1, description="Prompts per step.")
    num_generations: int | None = Field(default=None, ge=1, description="Completions per prompt.")
    max_new_tokens: int = Field(default=256, ge=1, description="Longest completion, in tokens.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling, and of the policy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample from the likeliest mass.")
    top_k: int = Field(default=0, ge=0, description="Sample from the k likeliest tokens; 0: all.")
    seed_each_completion: bool | None = Field(
        default=None,
        description="Draw each completion with random numbers of its own: a run is then the same "
        "on any number of processes and in any chunks. None: with several processes.",
    )
    rollout_chunk_prompts: int | None = Field(
        default=None,
        ge=1,
        description="Prompts decoded at once; rewards of a chunk are requested while the next one "
        "is decoded. None: all prompts of a step.",
    )
    mask_truncated_completions: bool = Field(
        default=False, description="Do not learn from completions cut off at max_new_tokens."
    )

    dynamic_sampling: bool | None = Field(
        default=None,
        description="Sample more prompts in place of those whose completions are all as right as "
        "each other.",
    )
    dynamic_sampling_metric: str | None = Field(
        default=None,
        description="Component of the reward that says how right a completion is. None: the "
        "reward before objectives and penalties; name one if that is shaped already.",
    )
    dynamic_sampling_rounds: int = Field(
        default=10, ge=1, description="Rounds of sampling; then the step takes what it has."
    )

    advantage: AdvantageEstimator | None = Field(
        default=None, description="How rewards become advantages."
    )
    advantage_whitening: Whitening | None = Field(
        default=None, description="Of advantages over the batch: none, bessel or population."
    )
    baseline_decay: float | None = Field(
        default=None, ge=0, lt=1, description="Of the moving baseline; 0.9: about ten batches."
    )
    mask_zero_std_groups: bool | None = Field(
        default=None,
        description="Leave groups of equal rewards out of the loss, its KL and entropy terms too.",
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
    ratio: RatioLevel | None = Field(
        default=None, description="Importance ratio over a token, or a sequence."
    )
    importance_sampling: IsMode | None = Field(
        default=None,
        description="Correct for a rollout engine that is not quite the policy: off, or truncate "
        "or mask the ratio of a token or of a sequence.",
    )
    importance_sampling_min: float | None = Field(
        default=None, ge=0, description="Smallest ratio within bounds."
    )
    importance_sampling_max: float | None = Field(
        default=None, gt=0, description="Largest ratio within bounds."
    )
    loss_aggregation: Aggregation | None = Field(
        default=None, description="How token losses become one number."
    )
    entropy_coef: float | None = Field(
        default=None, ge=0, description="Weight of the entropy bonus."
    )
    advantage_eps: float | None = Field(
        default=None, ge=0, description="Added to a group's standard deviation."
    )
    ptx: PtxConfig | None = Field(
        default=None, description="Ordinary text to mix into every update; None: none."
    )

    kl_coef: float | None = Field(
        default=None, ge=0, description="Weight of the KL penalty; 0 needs no reference policy."
    )
    kl_estimator: KlEstimator | None = Field(default=None, description="k1, k2 or k3.")
    kl_place: KlPlace | None = Field(
        default=None, description="In the reward, in the return, or in the loss."
    )
    kl_clamps: KlClamps | None = Field(
        default=None, description="Bounds of the estimates: none, verl's or openrlhf's."
    )
    kl_target: float | None = Field(
        default=None,
        gt=0,
        description="Steer kl_coef to this KL in nats: the mean per completion with kl_rule "
        "adaptive, per token with doubling.",
    )
    kl_rule: KlRule | None = Field(
        default=None, description="How kl_coef is steered: adaptive or doubling."
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
    gamma: float | None = Field(default=None, ge=0, le=1, description="Discount per token.")
    lam: float | None = Field(default=None, ge=0, le=1, description="Lambda of GAE.")
    max_nonfinite_updates: int = Field(
        default=10,
        ge=0,
        description="Gradients that are not finite are dropped; more than this in a row stop the "
        "run.",
    )
    save_micro_steps: int | None = Field(
        default=None,
        ge=1,
        description="Also save a checkpoint every so many micro-batches within a step. None: only "
        "when a step is whole, or the run is told to stop.",
    )

    monitor: MonitorConfig = Field(
        default_factory=MonitorConfig,
        description="Rules that watch for reward hacking and collapse, and what they do.",
    )
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

    def overlong_cache(self, spec: AlgorithmSpec) -> int:
        """Tokens before `max_new_tokens` that cost a penalty; 0 for none."""
        if self.overlong_cache_tokens is not None:
            return self.overlong_cache_tokens
        return round(spec.overlong_share * self.max_new_tokens)

    @model_validator(mode="after")
    def _the_penalty_fits(self) -> OnlineConfig:
        if (self.overlong_cache_tokens or 0) > self.max_new_tokens:
            raise ValueError(
                f"overlong_cache_tokens is {self.overlong_cache_tokens}; it must be at most "
                f"max_new_tokens, {self.max_new_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_are_cut_by_tokens(self) -> OnlineConfig:
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}; online "
                "trainers cut each minibatch by max_tokens_per_microbatch instead: leave it at 1"
            )
        return self
