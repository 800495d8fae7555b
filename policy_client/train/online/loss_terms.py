"""The loss of a micro-batch: the loss columns of a spec, and what to log of them.

Legend: N completions, T tokens of the longest one; n completions of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.aggregation import weighted_sum
from rewardsvc.policy_client.algorithms.importance import mismatch_ratio, mismatch_weights
from rewardsvc.policy_client.algorithms.kl import KlEstimator, kl_estimate
from rewardsvc.policy_client.algorithms.masking import masked_sum
from rewardsvc.policy_client.algorithms.policy_loss import importance_ratio, policy_loss
from rewardsvc.policy_client.algorithms.spec import AlgorithmSpec, KlAnchor, KlPlace
from rewardsvc.policy_client.algorithms.value_loss import clipped_value_loss
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.experience import Experience
from rewardsvc.policy_client.train.online.forward import PolicyForward, TokenLogprobs
from rewardsvc.policy_client.train.online.stats import Averages

LOSS, POLICY_LOSS, NUM_LOW, NUM_HIGH = "_loss", "_policy_loss", "_num_low", "_num_high"
"""Sums over the micro-batches of one minibatch, under these names in its `Averages`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTerms:
    """Computes the policy's loss.

    Attributes:
        forward: The policy.
        spec: The algorithm's row.
    """

    forward: PolicyForward
    spec: AlgorithmSpec

    def has_gradient_without_advantage(self, experience: Experience, kl_coef: float) -> bool:
        """Whether a completion with no advantage still has a loss with a gradient."""
        spec = self.spec
        anchored = spec.kl_anchor is KlAnchor.OLD_POLICY or experience.ref_logprobs is not None
        return spec.entropy_coef > 0 or (anchored and spec.kl_place is KlPlace.LOSS and kl_coef > 0)

    def loss(
        self,
        experience: Experience,
        rows: list[int],
        weights_nT: Tensor,
        *,
        kl_coef: float,
        first_update: bool,
        averages: Averages,
    ) -> Tensor:
        """The weighted loss of some rows.

        Args:
            experience: What to learn from.
            rows: The micro-batch.
            weights_nT: float [n, T], each token's weight in the minibatch's loss.
            kl_coef: Used here if the penalty's place is the loss.
            first_update: Whether the policy is still the one that made the rollout.
            averages: Of the minibatch; metrics are added to it.
        """
        spec = self.spec
        now = self.forward(experience.sequences.select(rows))
        mask_nT = experience.mask[rows]
        num_tokens = int(mask_nT.sum())
        # With one update per rollout the policy has not changed since: taking the ratio to itself
        # is exactly 1, where the rollout's log-probs differ by rounding.
        old_nT = now.logprobs.detach() if spec.single_update else experience.old_logprobs[rows]
        ratio_nT = importance_ratio(now.logprobs, old_nT, mask_nT, spec.ratio)
        policy = policy_loss(
            now.logprobs,
            ratio_nT,
            experience.advantages[rows],
            mask_nT,
            objective=spec.objective,
            clip=spec.clip,
        )
        mismatch_nT = self._mismatch(experience, rows, now, first_update, averages)
        token_loss_nT = policy.loss
        if mismatch_nT is not None:
            token_loss_nT = token_loss_nT * mismatch_weights(mismatch_nT, spec.importance)
        policy_term = weighted_sum(token_loss_nT, weights_nT)
        loss = policy_term
        if spec.entropy_coef:
            loss = loss - spec.entropy_coef * weighted_sum(now.entropy, weights_nT)
        kl_nT = self._kl(experience, rows, now, old_nT, averages)
        if kl_nT is not None and spec.kl_place is KlPlace.LOSS:
            kl_nT = kl_nT * ratio_nT if spec.kl_by_ratio else kl_nT
            loss = loss + kl_coef * weighted_sum(kl_nT, weights_nT)
        averages.count(LOSS, float(loss.detach()))
        averages.count(POLICY_LOSS, float(policy_term.detach()))
        averages.count(NUM_LOW, float((policy.clipped_low & mask_nT).sum()))
        averages.count(NUM_HIGH, float((policy.clipped_high & mask_nT).sum()))
        averages.add("ratio/mean", float(masked_sum(policy.ratio, mask_nT)), num_tokens)
        return loss

    def _kl(
        self,
        experience: Experience,
        rows: list[int],
        now: TokenLogprobs,
        old_nT: Tensor,
        averages: Averages,
    ) -> Tensor | None:
        spec, mask_nT = self.spec, experience.mask[rows]
        if spec.kl_anchor is KlAnchor.OLD_POLICY:
            name, policy_nT, anchor_nT = "kl_old", old_nT, now.logprobs
        elif experience.ref_logprobs is not None:
            name, policy_nT, anchor_nT = "kl", now.logprobs, experience.ref_logprobs[rows]
        else:
            return None
        kl_nT = kl_estimate(policy_nT, anchor_nT, mask_nT, spec.kl_estimator, clamps=spec.kl_clamps)
        averages.add(name, float(masked_sum(kl_nT.detach(), mask_nT)), int(mask_nT.sum()))
        return kl_nT

    def _mismatch(
        self,
        experience: Experience,
        rows: list[int],
        now: TokenLogprobs,
        first_update: bool,
        averages: Averages,
    ) -> Tensor | None:
        """Policy over sampler before any bound; None once the policy has moved and nobody asked.

        Statistics are of the ratios before they are truncated: afterwards nothing is left to see.
        """
        mask_nT = experience.mask[rows]
        if experience.mismatch is not None:
            ratio_nT = experience.mismatch[rows]
        elif first_update:
            ratio_nT = mismatch_ratio(
                now.logprobs, experience.sampler_logprobs[rows], mask_nT, self.spec.importance.mode
            )
        else:
            return None
        if first_update:
            ratios = ratio_nT[mask_nT]
            name = "sampling/importance_sampling_ratio"
            averages.add(f"{name}/mean", float(ratios.sum()), ratios.numel())
            averages.low(f"{name}/min", float(ratios.min()))
            averages.high(f"{name}/max", float(ratios.max()))
        return ratio_nT

    @torch.no_grad()
    def kl_from_old(self, experience: Experience, max_tokens: int) -> float:
        """Mean KL(old policy || policy as it is now) of a token, in nats, by k3."""
        now = self.forward.in_batches(experience.sequences, max_tokens).logprobs
        mask_NT = experience.mask
        kl_NT = kl_estimate(experience.old_logprobs, now, mask_NT, KlEstimator.K3)
        return float(masked_sum(kl_NT, mask_NT)) / max(int(mask_NT.sum()), 1)


def value_loss(
    critic: Critic,
    experience: Experience,
    rows: list[int],
    *,
    clip: float | None,
    averages: Averages,
) -> Tensor:
    """The summed value loss of some rows.

    Raises:
        ValueError: If the experience has no values or returns.
    """
    old, returns = experience.old_values, experience.returns
    if old is None or returns is None:
        raise ValueError("a critic needs old_values and returns")
    values_nT = critic(experience.sequences.select(rows))
    mask_nT = experience.mask[rows]
    loss_nT, clipped_nT = clipped_value_loss(
        values_nT, old[rows], returns[rows], mask_nT, clip=clip
    )
    loss = masked_sum(loss_nT, mask_nT)
    num_tokens = int(mask_nT.sum())
    averages.add("critic/vf_loss", float(loss.detach()), num_tokens)
    averages.add("critic/vf_clipfrac", float(clipped_nT.sum()), num_tokens)
    return loss
