"""The section `monitor:` of a trainer's configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardsvc.policy_client.train.monitor.rules import Action
from rewardsvc.policy_client.train.monitor.table import RULES


class RuleOverride(BaseModel):
    """What to change of a rule; what is not given stays."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    above: float | None = Field(default=None, description="Trips from here on upwards.")
    below: float | None = Field(default=None, description="Trips from here on downwards.")
    clear: float | None = Field(default=None, description="Quiet again behind it.")
    patience: int | None = Field(default=None, ge=1, description="Steps in a row.")
    action: Action | None = Field(default=None, description="warn, raise_kl, roll_back or stop.")
    enabled: bool = Field(default=True, description="Whether it is looked at at all.")


class MonitorConfig(BaseModel):
    """Watching for reward hacking and collapse."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(default=True, description="Whether to watch.")
    baseline_steps: int = Field(
        default=10, ge=1, description="Steps whose mean later steps are compared with."
    )
    truth: str = Field(
        default="true_quality",
        description="Metric of the held-out verifier that the reward is compared with.",
    )
    proxy: str = Field(default="reward", description="Metric that is learned from.")
    disagreement: str | None = Field(
        default=None, description="Metric of an ensemble's disagreement, such as rewards/std/mean."
    )
    window: int = Field(default=20, ge=4, description="Steps over which trends are taken.")
    kl_factor: float = Field(
        default=2.0, gt=1, description="By which an alarm that raises the KL multiplies it."
    )
    kl_floor: float = Field(
        default=0.01, gt=0, description="What a KL coefficient of 0 is raised to."
    )
    max_kl_raises: int = Field(default=3, ge=0, description="After them, such an alarm warns.")
    max_roll_backs: int = Field(default=2, ge=0, description="After them, such an alarm stops.")
    rules: dict[str, RuleOverride] = Field(
        default_factory=dict, description="Changes to single rules, by name."
    )

    @model_validator(mode="after")
    def _rules_are_known(self) -> MonitorConfig:
        known = [rule.name for rule in RULES]
        for name in self.rules:
            if name not in known:
                raise ValueError(f"rules.{name}: no such rule; known: {', '.join(known)}")
        return self
