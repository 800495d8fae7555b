"""The `objectives` section of a configuration: several rewards, and constraints."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardsvc.policy_client.algorithms.normalise import RewardNorm


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectiveConfig(_Section):
    """One reward among several."""

    source: str | None = Field(
        default=None,
        description="Component of the reward; `reward` is its value, `length` the number of "
        "tokens. None: the objective's own name.",
    )
    weight: float = Field(default=1.0, description="Its weight; may be negative in a weighted sum.")
    normalise: RewardNorm = Field(
        default=RewardNorm.NONE,
        description="none, group, batch, or running (by its deviation over the run).",
    )
    ideal: float | None = Field(
        default=None,
        description="For chebyshev: the best it can be, after normalising. None: the best so far.",
    )


class ConstraintConfig(_Section):
    """A bound on the mean of a component, held by a multiplier that adapts."""

    source: str | None = Field(
        default=None, description="As for a reward. None: the constraint's own name."
    )
    at_most: float | None = Field(default=None, description="Upper bound of its mean.")
    at_least: float | None = Field(default=None, description="Lower bound of its mean.")
    learning_rate: float = Field(
        default=0.05, gt=0, description="Of the multiplier, per unit of violation and step."
    )
    initial: float = Field(default=0.0, ge=0, description="The multiplier at the start.")
    max_multiplier: float = Field(default=100.0, gt=0, description="The multiplier's upper bound.")

    @model_validator(mode="after")
    def _one_bound(self) -> ConstraintConfig:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(
                f"at_most is {self.at_most}, at_least is {self.at_least}; give exactly one"
            )
        return self

    @property
    def limit(self) -> float:
        """The bound, whichever it is."""
        bound = self.at_least if self.at_most is None else self.at_most
        assert bound is not None  # checked when built
        return bound


class ObjectivesConfig(_Section):
    """How several rewards become one."""

    scalarise: Literal["weighted", "chebyshev"] = Field(
        default="weighted",
        description="weighted: their weighted sum. chebyshev: what the worst of them falls short "
        "of its ideal.",
    )
    rewards: dict[str, ObjectiveConfig] = Field(
        min_length=1, description="The rewards by name, for instance {math: {weight: 1.0}}."
    )
    constraints: dict[str, ConstraintConfig] = Field(
        default_factory=dict,
        description="Bounds by name, for instance {length: {at_most: 200}}: a Lagrangian whose "
        "multipliers adapt.",
    )
    missing: Literal["mask", "skip"] = Field(
        default="mask",
        description="A completion that lacks one of the rewards has none (mask), or the sum of "
        "the others (skip, weighted only).",
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> ObjectivesConfig:
        weights = {name: part.weight for name, part in self.rewards.items()}
        if self.scalarise == "chebyshev" and min(weights.values()) <= 0:
            raise ValueError(f"rewards: weights are {weights}; chebyshev's must be positive")
        if self.scalarise == "chebyshev" and self.missing == "skip":
            raise ValueError("missing: skip is for scalarise: weighted; chebyshev needs them all")
        return self
