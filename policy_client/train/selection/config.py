"""Configurations of the trainers that select from the policy's own completions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewardsvc.policy_client.train.offline import OfflineConfig
from rewardsvc.policy_client.train.online.config import RewardConfig


class SelectionConfig(OfflineConfig):
    """What they have in common. Rows are prompts; each step completes those of its batch."""

    reward: RewardConfig | None = Field(
        default=None, description="Where rewards come from, unless the caller passes a source."
    )
    num_generations: int = Field(default=8, ge=2, description="Completions of each prompt.")
    max_new_tokens: int = Field(default=256, ge=1, description="Tokens of a completion.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling.")
    seed_each_completion: bool | None = Field(
        default=None,
        description="Draw each completion with random numbers of its own: a run is then the same "
        "on any number of processes. None: with several processes.",
    )
    max_service_outage_s: float = Field(
        default=600.0, ge=0, description="For how long a reward service may be away."
    )


class OnlineDpoConfig(SelectionConfig):
    """Preference optimisation on the best and the worst of each prompt's fresh completions."""

    loss: Literal["dpo", "ipo", "slic", "sppo"] = Field(
        default="dpo", description="Which loss; all of them compare with the reference."
    )
    beta: float = Field(default=0.1, gt=0, description="Strength of the reference.")
    min_margin: float = Field(
        default=0.0, ge=0, description="Best and worst must differ in reward by more than this."
    )
    reference_update_steps: int | None = Field(
        default=None,
        ge=1,
        description="Steps after which the policy becomes its own reference, as in iterative DPO. "
        "None: the reference is the policy before the first step.",
    )


class RaftConfig(SelectionConfig):
    """Rejection sampling: supervised fine-tuning on each prompt's best fresh completion."""

    min_reward: float | None = Field(
        default=None,
        description="The best completion must have at least this reward to be learned from. None: "
        "it must be better than another one of its prompt.",
    )
