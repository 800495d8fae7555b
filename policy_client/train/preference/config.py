"""Configurations of the preference trainers, one class a loss; defaults are the usual values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewardsvc.policy_client.algorithms.preference.spin import Link
from rewardsvc.policy_client.train.offline import OfflineConfig


class PreferenceConfig(OfflineConfig):
    """What all trainers on preferences have in common."""

    add_eos: bool = Field(
        default=True, description="End plain completions with EOS, as in supervised fine-tuning."
    )


class ReferenceConfig(PreferenceConfig):
    """Of those that compare the policy with a frozen reference."""

    reference_model: str | None = Field(
        default=None,
        description="Folder or hub id of the reference. Default: the policy before the first step. "
        "Its log-probs are taken once, before training; it is not in memory meanwhile.",
    )


class _SupervisedTerm(PreferenceConfig):
    sft_coefficient: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the negative log-likelihood per token of the chosen completion.",
    )


class DpoConfig(ReferenceConfig, _SupervisedTerm):
    """Direct preference optimisation; cDPO with `label_smoothing`."""

    beta: float = Field(default=0.1, gt=0, description="Strength of the reference.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs believed to be the wrong way round."
    )
    length_coefficient: float = Field(
        default=0.0,
        ge=0,
        description="Reward a token of length is believed to be worth to the judges (R-DPO).",
    )


class IpoConfig(ReferenceConfig):
    """Identity preference optimisation."""

    beta: float = Field(default=0.1, gt=0, description="The paper's tau.")
    compat: Literal["paper", "trl"] = Field(
        default="paper", description="trl: log ratios per token in place of their sums."
    )


class SimpoConfig(_SupervisedTerm):
    """Simple preference optimisation, without a reference."""

    beta: float = Field(default=2.0, gt=0, description="Scale of the rewards.")
    gamma: float = Field(default=1.0, ge=0, description="Margin to win by, in units of reward.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs believed to be the wrong way round."
    )


class OrpoConfig(PreferenceConfig):
    """Odds-ratio preference optimisation, without a reference."""

    odds_coefficient: float = Field(default=0.1, gt=0, description="The paper's lambda.")
    compat: Literal["llamafactory", "trl"] = Field(
        default="llamafactory",
        description="What the likelihood term is over. llamafactory: the completion; trl: prompt "
        "and completion.",
    )


class SlicConfig(ReferenceConfig, _SupervisedTerm):
    """Sequence likelihood calibration."""

    beta: float = Field(default=1.0, gt=0, description="Scale of the margin.")
    delta: float = Field(default=1.0, gt=0, description="The margin to reach.")
    use_reference: bool = Field(
        default=False, description="Log ratios in place of log-probs, as TRL's `hinge`."
    )
    sft_coefficient: float = Field(
        default=0.1,
        ge=0,
        description="The paper's lambda: weight of the likelihood of the chosen completion.",
    )


class SppoConfig(ReferenceConfig):
    """Self-play preference optimisation, one iteration.

    Win rates are read from the columns `chosen_win_rate` and `rejected_win_rate`; 1 and 0 where a
    row has none.
    """

    beta: float = Field(default=0.001, gt=0, description="1 / eta of the paper.")
    compat: Literal["paper", "trl"] = Field(
        default="paper", description="trl: the sum of both squares, which is twice the paper's."
    )


class SpinConfig(ReferenceConfig):
    """Self-play fine-tuning: rows of prompt and completion; the policy makes its opponents."""

    beta: float = Field(default=0.1, gt=0, description="The paper's lambda.")
    link: Link = Field(default=Link.LOGISTIC, description="How a margin becomes a loss.")
    temperature: float = Field(default=1.0, gt=0, description="Of the policy's own completions.")
    max_new_tokens: int = Field(
        default=256, ge=1, description="Tokens of the policy's own completions."
    )
    generation_batch_size: int = Field(
        default=64, ge=1, description="Prompts to complete at a time."
    )


class KtoConfig(ReferenceConfig):
    """Kahneman-Tversky optimisation: rows of prompt, completion and `label` (true for good)."""

    beta: float = Field(default=0.1, gt=0, description="Strength of the reference.")
    desirable_weight: float = Field(default=1.0, ge=0, description="Weight of good completions.")
    undesirable_weight: float = Field(default=1.0, ge=0, description="Weight of bad completions.")


class RrhfConfig(PreferenceConfig):
    """Rank responses: rows of prompt, `completions` (a list) and their `scores`."""

    sft_coefficient: float = Field(
        default=1.0, ge=0, description="Weight of the likelihood per token of the best completion."
    )
