"""The table: one row an algorithm, one column a choice.

The trainer reads the row, and has no branch by an algorithm's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.kl import KlEstimator
from rewardsvc.policy_client.algorithms.policy_loss import ClipRange, RatioLevel


class AdvantageEstimator(StrEnum):
    """How rewards become advantages.

    * GAE: per token, against a critic's values; whitened over the batch.
    * GROUP_NORM: per completion, centred and scaled within its group.
    * GROUP_CENTRE: per completion, centred within its group.
    * LEAVE_ONE_OUT: per completion, against the mean of the others of its group.
    * WHITENED_RETURN: per token, the reward to go, whitened over the batch; no group needed.
    """

    GAE = "gae"
    GROUP_NORM = "group-norm"
    GROUP_CENTRE = "group-centre"
    LEAVE_ONE_OUT = "leave-one-out"
    WHITENED_RETURN = "whitened-return"

    @property
    def per_token(self) -> bool:
        """Whether advantages vary within a completion, so that a KL penalty does too."""
        return self in (AdvantageEstimator.GAE, AdvantageEstimator.WHITENED_RETURN)

    @property
    def needs_critic(self) -> bool:
        """Whether there must be a value function."""
        return self is AdvantageEstimator.GAE


class KlPlace(StrEnum):
    """Where the KL penalty enters.

    * REWARD: subtracted from the reward before advantages are taken; no gradient of its own.
    * LOSS: a term of the loss, with a gradient of its own.
    """

    REWARD = "reward"
    LOSS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmSpec:
    """One row of the table.

    Attributes:
        advantage: How rewards become advantages.
        ratio: Over what the importance ratio is taken.
        clip: The ratio's bounds.
        aggregation: How token losses become one number.
        kl_place: Where the KL penalty enters, if its coefficient is not 0.
        kl_estimator: By which estimator.
        kl_coef: The penalty's default coefficient; 0 needs no reference policy.
        num_generations: Default size of a group.
        num_epochs: Default passes over each batch of rollouts.
        num_minibatches: Default optimiser steps per pass.
        source: Where the row comes from, and where it deviates.

    Raises:
        ValueError: If a group estimator comes with groups of one.
    """

    advantage: AdvantageEstimator
    ratio: RatioLevel = RatioLevel.TOKEN
    clip: ClipRange = field(default_factory=ClipRange)
    aggregation: Aggregation = Aggregation.TOKEN_MEAN
    kl_place: KlPlace
    kl_estimator: KlEstimator
    kl_coef: float
    num_generations: int
    num_epochs: int = 1
    num_minibatches: int = 1
    source: str

    def __post_init__(self) -> None:
        if not self.advantage.per_token and self.num_generations < 2:
            raise ValueError(
                f"num_generations is {self.num_generations}; {self.advantage} compares the "
                "completions of a prompt with each other and needs at least 2"
            )


PRESETS: Mapping[str, AlgorithmSpec] = MappingProxyType(
    {
        "ppo": AlgorithmSpec(
            advantage=AdvantageEstimator.GAE,
            kl_place=KlPlace.REWARD,
            kl_estimator=KlEstimator.K1,
            kl_coef=0.05,
            num_generations=1,
            num_epochs=4,
            source="Ouyang et al. 2022 (arXiv:2203.02155); Huang et al. 2024 (arXiv:2403.17031)",
        ),
        "grpo": AlgorithmSpec(
            advantage=AdvantageEstimator.GROUP_NORM,
            kl_place=KlPlace.LOSS,
            kl_estimator=KlEstimator.K3,
            kl_coef=0.0,
            num_generations=8,
            source=(
                "Shao et al. 2024 (arXiv:2402.03300). Token-mean and no KL are what libraries have "
                "as their defaults today; the paper has seq-mean-token-mean and kl_coef 0.04."
            ),
        ),
        "dr_grpo": AlgorithmSpec(
            advantage=AdvantageEstimator.GROUP_CENTRE,
            aggregation=Aggregation.SEQ_MEAN_TOKEN_SUM_NORM,
            kl_place=KlPlace.LOSS,
            kl_estimator=KlEstimator.K3,
            kl_coef=0.0,
            num_generations=8,
            source="Liu et al. 2025 (arXiv:2503.20783)",
        ),
        "gspo": AlgorithmSpec(
            advantage=AdvantageEstimator.GROUP_NORM,
            ratio=RatioLevel.SEQUENCE_MEAN,
            clip=ClipRange(eps_low=3e-4, eps_high=4e-4),
            aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN,
            kl_place=KlPlace.LOSS,
            kl_estimator=KlEstimator.K3,
            kl_coef=0.0,
            num_generations=8,
            num_minibatches=4,
            source="Zheng et al. 2025 (arXiv:2507.18071)",
        ),
        "rloo": AlgorithmSpec(
            advantage=AdvantageEstimator.LEAVE_ONE_OUT,
            ratio=RatioLevel.SEQUENCE,
            aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN,
            kl_place=KlPlace.REWARD,
            kl_estimator=KlEstimator.K1,
            kl_coef=0.05,
            num_generations=4,
            source=(
                "Ahmadian et al. 2024 (arXiv:2402.14740), with a clipped ratio per completion; as "
                "it is constant in one, seq-mean-token-mean is the mean over completions."
            ),
        ),
        "reinforce_pp": AlgorithmSpec(
            advantage=AdvantageEstimator.WHITENED_RETURN,
            kl_place=KlPlace.REWARD,
            kl_estimator=KlEstimator.K1,
            kl_coef=0.01,
            num_generations=1,
            source="Hu et al. 2025 (arXiv:2501.03262)",
        ),
    }
)
"""The algorithms by name. Every column is really applied by the online trainer."""
