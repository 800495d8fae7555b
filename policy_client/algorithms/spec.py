"""The columns of the table of algorithms: `AlgorithmSpec` is one row."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from rewardsvc.policy_client.algorithms.advantages import GROUP_STD_EPS
from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.importance import IsCorrection
from rewardsvc.policy_client.algorithms.kl import KlClamps, KlEstimator
from rewardsvc.policy_client.algorithms.kl_control import KlRule
from rewardsvc.policy_client.algorithms.masking import Whitening
from rewardsvc.policy_client.algorithms.policy_loss import ClipRange, Objective, RatioLevel


class AdvantageEstimator(StrEnum):
    """How rewards become advantages.

    * GAE: per token, against a critic's values.
    * RETURN: per token, the reward to go; no group needed.
    * MOVING_BASELINE: per completion, against a moving average of all rewards; no group needed.
    * GROUP_NORM: per completion, centred and scaled within its group.
    * GROUP_CENTRE: per completion, centred within its group.
    * GROUP_CENTRE_BATCH_STD: centred within its group, scaled by the deviation of the batch.
    * LEAVE_ONE_OUT: per completion, against the mean of the others of its group.
    * LEAVE_ONE_OUT_NORM: the same, scaled by the deviation of the whole group.
    * STEP_GROUP_NORM: per token, process rewards normalised over all steps of a group.
    """

    GAE = "gae"
    RETURN = "return"
    MOVING_BASELINE = "moving-baseline"
    GROUP_NORM = "group-norm"
    GROUP_CENTRE = "group-centre"
    GROUP_CENTRE_BATCH_STD = "group-centre-batch-std"
    LEAVE_ONE_OUT = "leave-one-out"
    LEAVE_ONE_OUT_NORM = "leave-one-out-norm"
    STEP_GROUP_NORM = "step-group-norm"

    @property
    def per_token(self) -> bool:
        """Whether rewards are spread over tokens before advantages are taken."""
        return self in (AdvantageEstimator.GAE, AdvantageEstimator.RETURN)

    @property
    def needs_critic(self) -> bool:
        """Whether there must be a value function."""
        return self is AdvantageEstimator.GAE

    @property
    def needs_group(self) -> bool:
        """Whether it compares the completions of a prompt with each other."""
        return not self.per_token and self is not AdvantageEstimator.MOVING_BASELINE


class KlPlace(StrEnum):
    """Where the KL penalty enters.

    * REWARD: subtracted from the reward before advantages are taken; no gradient of its own. With
      estimators over groups it is the completion's whole penalty, and so part of the baseline.
    * RETURN: each token's reward to go of penalties, subtracted from the advantages of a group
      estimator: not part of the baseline (OpenRLHF).
    * LOSS: a term of the loss, with a gradient of its own.
    """

    REWARD = "reward"
    RETURN = "return"
    LOSS = "loss"


class KlAnchor(StrEnum):
    """What the policy is held to.

    * REFERENCE: KL(policy || reference), a policy that never changes.
    * OLD_POLICY: KL(old policy || policy), of the policy that made the rollout (PPO-penalty).
    """

    REFERENCE = "reference"
    OLD_POLICY = "old-policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmSpec:
    """One row of the table.

    Attributes:
        advantage: How rewards become advantages.
        std_eps: Added to standard deviations of groups.
        whitening: Of token advantages over the batch, after the estimator.
        gamma: Discount per token, of GAE and RETURN.
        lam: Lambda of GAE.
        baseline_decay: Of MOVING_BASELINE; 0.9 remembers about ten batches.
        outcome_weight: Weight of the completion's reward where there are process rewards.
        process_weight: Weight of process rewards; above 0 the reward source must give steps.
        ratio: Over what the importance ratio is taken.
        objective: What a token's loss is.
        clip: The ratio's bounds.
        aggregation: How token losses become one number.
        importance: How a mismatch between the sampler and the trainer is corrected for.
        kl_place: Where the KL penalty enters, if its coefficient is not 0.
        kl_anchor: What the penalty holds the policy to.
        kl_estimator: By which estimator.
        kl_clamps: Whose bounds the estimates have.
        kl_by_ratio: Multiply the KL term of the loss by the importance ratio, which makes the
            gradient of k3 that of KL(policy || reference) (TRL).
        kl_coef: The penalty's coefficient at the start.
        kl_target: What `kl_rule` steers the coefficient to; None leaves it as it is.
        kl_rule: How it is steered.
        entropy_coef: Weight of the entropy bonus.
        mask_zero_std: Leave groups of equal rewards out altogether: without, they still count in
            the mean over tokens, and a KL term in the loss moves them.
        dynamic_sampling: Replace groups in which all completions are as right as each other.
        overlong_share: The last part of `max_new_tokens` in which a penalty for length grows to 1;
            0 for no penalty.
        num_generations: Size of a group.
        num_epochs: Passes over each batch of rollouts.
        num_minibatches: Optimiser steps per pass.
        source: Where the row comes from, and where it deviates.

    Raises:
        ValueError: If the choices contradict each other.
    """

    advantage: AdvantageEstimator
    std_eps: float = GROUP_STD_EPS
    whitening: Whitening = Whitening.NONE
    gamma: float = 1.0
    lam: float = 0.95
    baseline_decay: float = 0.9
    outcome_weight: float = 1.0
    process_weight: float = 0.0
    ratio: RatioLevel = RatioLevel.TOKEN
    objective: Objective = Objective.CLIP
    clip: ClipRange = field(default_factory=ClipRange)
    aggregation: Aggregation = Aggregation.TOKEN_MEAN
    importance: IsCorrection = field(default_factory=IsCorrection)
    kl_place: KlPlace = KlPlace.LOSS
    kl_anchor: KlAnchor = KlAnchor.REFERENCE
    kl_estimator: KlEstimator = KlEstimator.K3
    kl_clamps: KlClamps = KlClamps.VERL
    kl_by_ratio: bool = False
    kl_coef: float = 0.0
    kl_target: float | None = None
    kl_rule: KlRule = KlRule.ADAPTIVE
    entropy_coef: float = 0.0
    mask_zero_std: bool = False
    dynamic_sampling: bool = False
    overlong_share: float = 0.0
    num_generations: int
    num_epochs: int = 1
    num_minibatches: int = 1
    source: str

    def __post_init__(self) -> None:
        grouped = self.advantage.needs_group or self.dynamic_sampling
        if grouped and self.num_generations < 2:
            what = self.advantage if self.advantage.needs_group else "dynamic_sampling"
            raise ValueError(
                f"num_generations is {self.num_generations}; {what} compares the "
                "completions of a prompt with each other and needs at least 2"
            )
        if self.kl_anchor is KlAnchor.OLD_POLICY and self.kl_place is not KlPlace.LOSS:
            raise ValueError(
                f"kl_place is {self.kl_place}; a penalty towards the old policy is 0 when the "
                "rollout is made, so it can only be a term of the loss"
            )
        if self.kl_place is KlPlace.RETURN and self.advantage.per_token:
            raise ValueError(
                f"kl_place is return; {self.advantage} has it token by token in the reward already"
            )
        if self.advantage is AdvantageEstimator.STEP_GROUP_NORM and not self.process_weight > 0:
            raise ValueError(
                f"process_weight is {self.process_weight}; {self.advantage} needs process rewards"
            )
        if self.process_weight > 0 and not (
            self.advantage.per_token or self.advantage is AdvantageEstimator.STEP_GROUP_NORM
        ):
            raise ValueError(
                f"process_weight is {self.process_weight}; {self.advantage} has one advantage per "
                "completion. Use gae, return or step-group-norm"
            )
        steps = self.advantage is AdvantageEstimator.STEP_GROUP_NORM
        if steps and self.kl_place is KlPlace.REWARD and self.kl_coef > 0:
            raise ValueError(
                f"kl_place is reward; {self.advantage} has several rewards per completion. Use "
                "return or loss"
            )
        if not 0 <= self.overlong_share <= 1:
            raise ValueError(f"overlong_share is {self.overlong_share}; it must be in [0, 1]")

    @property
    def needs_reference(self) -> bool:
        """Whether there must be a reference policy."""
        return self.kl_coef > 0 and self.kl_anchor is KlAnchor.REFERENCE

    @property
    def single_update(self) -> bool:
        """Whether the policy makes one optimiser step per rollout."""
        return self.num_epochs * self.num_minibatches == 1
