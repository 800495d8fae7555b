"""From experience to new weights: epochs, minibatches, micro-batches, optimizer steps.

Legend: N completions, T tokens of the longest one; n completions of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewardsvc.policy_client.algorithms.aggregation import (
    token_weights,
    weighted_sum,
)
from rewardsvc.policy_client.algorithms.kl import kl_estimate
from rewardsvc.policy_client.algorithms.masking import masked_sum
from rewardsvc.policy_client.algorithms.policy_loss import (
    PolicyLoss,
    clipped_policy_loss,
    importance_ratio,
)
from rewardsvc.policy_client.algorithms.presets import AlgorithmSpec, KlPlace
from rewardsvc.policy_client.algorithms.value_loss import clipped_value_loss, explained_variance
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.experience import Experience
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.stats import Averages


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateParams:
    """Numbers that the update depends on; see the fields of the same names in `OnlineConfig`."""

    max_tokens_per_microbatch: int
    max_grad_norm: float
    max_new_tokens: int
    entropy_coef: float
    value_clip: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What is learned.

    Attributes:
        forward: The policy.
        optimizer: Of the policy.
        critic: None where the algorithm has none.
        critic_optimizer: Of the critic.
    """

    forward: PolicyForward
    optimizer: torch.optim.Optimizer
    critic: Critic | None = None
    critic_optimizer: torch.optim.Optimizer | None = None


class Updater:
    """Applies the loss columns of a spec."""

    def __init__(self, learner: Learner, spec: AlgorithmSpec, params: UpdateParams) -> None:
        """Takes what is learned, and how."""
        self._learner = learner
        self._spec = spec
        self._params = params
        self._single_update = spec.num_epochs * spec.num_minibatches == 1

    def update(
        self, experience: Experience, *, kl_coef: float, generator: torch.Generator
    ) -> dict[str, float]:
        """One step's optimizer steps.

        Args:
            experience: What to learn from.
            kl_coef: Weight of the KL penalty, used here if its place is the loss.
            generator: On the CPU; shuffles minibatches, and is not used if there is only one.

        Returns:
            Metrics of the update. Values of ratios and losses are those before each optimizer step.
        """
        averages = Averages()
        num_rows = len(experience.sequences.prompts)
        for _ in range(self._spec.num_epochs):
            if self._spec.num_minibatches == 1:
                order = list(range(num_rows))
            else:
                order = torch.randperm(num_rows, generator=generator).tolist()
            for part in torch.tensor(order).tensor_split(self._spec.num_minibatches):
                self._minibatch(experience, part.tolist(), kl_coef, averages)
        metrics = averages.result()
        if experience.returns is not None and experience.old_values is not None:
            metrics["critic/vf_explained_var"] = explained_variance(
                experience.old_values, experience.returns, experience.mask
            )
        return metrics

    def _minibatch(
        self, experience: Experience, rows: Sequence[int], kl_coef: float, averages: Averages
    ) -> None:
        """One optimizer step, on the sum of the losses of micro-batches."""
        mask_NT = experience.mask[rows]
        num_tokens = int(mask_NT.sum())
        if num_tokens == 0:
            averages.count("num_skipped_updates")
            return
        weights_NT = experience.advantages.new_zeros(experience.mask.shape)
        weights_NT[rows] = token_weights(
            mask_NT,
            self._spec.aggregation,
            norm_length=self._params.max_new_tokens,
            dtype=weights_NT.dtype,
        )
        value_weight = 1.0 / num_tokens
        totals = _MinibatchTotals()
        used_N = self._learned_from(experience, rows)
        active = [row for row, used in zip(rows, used_N.tolist(), strict=True) if used]
        max_tokens = self._params.max_tokens_per_microbatch
        for part in experience.sequences.micro_batches(max_tokens, active):
            loss = self._policy_loss(experience, part, weights_NT[part], kl_coef, averages, totals)
            loss.backward()  # type: ignore[no-untyped-call]
            if self._learner.critic is not None:
                value_loss = self._value_loss(experience, part, averages)
                (value_loss * value_weight).backward()  # type: ignore[no-untyped-call]
        totals.report(averages, num_tokens)
        model = self._learner.forward.model
        self._step(model, self._learner.optimizer, "grad_norm", averages)
        if self._learner.critic is not None and self._learner.critic_optimizer is not None:
            critic, optimizer = self._learner.critic, self._learner.critic_optimizer
            self._step(critic, optimizer, "critic/grad_norm", averages)

    def _learned_from(self, experience: Experience, rows: Sequence[int]) -> Tensor:
        """bool [rows]: which of these need a forward pass.

        Without an advantage the policy's loss has no gradient: where no other term has one either,
        a group of equal rewards costs nothing. It still counts in the weights of the others.
        """
        mask_NT = experience.mask[rows]
        other_terms = (
            self._learner.critic is not None
            or self._params.entropy_coef > 0
            or (experience.ref_logprobs is not None and self._spec.kl_place is KlPlace.LOSS)
        )
        if other_terms:
            return mask_NT.any(1)
        return (mask_NT & (experience.advantages[rows] != 0)).any(1)

    def _policy_loss(
        self,
        experience: Experience,
        rows: list[int],
        weights_nT: Tensor,
        kl_coef: float,
        averages: Averages,
        totals: _MinibatchTotals,
    ) -> Tensor:
        """The weighted loss of some rows, and its metrics."""
        now = self._learner.forward(experience.sequences.select(rows))
        mask_nT = experience.mask[rows]
        # With one update per rollout the policy has not changed since: taking the ratio to itself
        # is exactly 1, where the rollout's log-probs differ by rounding.
        rollout_nT = experience.old_logprobs[rows]
        old_nT = now.logprobs.detach() if self._single_update else rollout_nT
        ratio_nT = importance_ratio(now.logprobs, old_nT, mask_nT, self._spec.ratio)
        policy = clipped_policy_loss(
            ratio_nT, experience.advantages[rows], mask_nT, self._spec.clip
        )
        num_tokens = int(mask_nT.sum())
        policy_loss = weighted_sum(policy.loss, weights_nT)
        loss = policy_loss
        if self._params.entropy_coef:
            loss = loss - self._params.entropy_coef * weighted_sum(now.entropy, weights_nT)
        if experience.ref_logprobs is not None:
            kl_nT = kl_estimate(
                now.logprobs, experience.ref_logprobs[rows], mask_nT, self._spec.kl_estimator
            )
            averages.add("kl", float(masked_sum(kl_nT.detach(), mask_nT)), num_tokens)
            if self._spec.kl_place is KlPlace.LOSS:
                loss = loss + kl_coef * weighted_sum(kl_nT, weights_nT)
        draw_nT = experience.draw_logprobs[rows]
        drawn = (now.logprobs.detach() - draw_nT)[mask_nT].exp()
        averages.add("sampling/importance_sampling_ratio/mean", float(drawn.sum()), num_tokens)
        averages.low("sampling/importance_sampling_ratio/min", float(drawn.min()))
        averages.high("sampling/importance_sampling_ratio/max", float(drawn.max()))
        totals.add(loss, policy_loss, policy, mask_nT)
        return loss

    def _value_loss(self, experience: Experience, rows: list[int], averages: Averages) -> Tensor:
        """The summed value loss of some rows, and its metrics."""
        critic, old, returns = (
            self._learner.critic,
            experience.old_values,
            experience.returns,
        )
        if critic is None or old is None or returns is None:
            raise ValueError("a critic needs old_values and returns")
        values_nT = critic(experience.sequences.select(rows))
        mask_nT = experience.mask[rows]
        loss_nT, clipped_nT = clipped_value_loss(
            values_nT, old[rows], returns[rows], mask_nT, clip=self._params.value_clip
        )
        loss = masked_sum(loss_nT, mask_nT)
        num_tokens = int(mask_nT.sum())
        averages.add("critic/vf_loss", float(loss.detach()), num_tokens)
        averages.add("critic/vf_clipfrac", float(clipped_nT.sum()), num_tokens)
        return loss

    def _step(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, name: str, averages: Averages
    ) -> None:
        """Clips the gradient and steps; a gradient that is not finite is dropped, and counted."""
        norm = nn.utils.clip_grad_norm_(module.parameters(), self._params.max_grad_norm)
        if bool(norm.isfinite()):
            optimizer.step()
            averages.add(name, float(norm), 1.0)
        else:
            averages.count("num_skipped_updates")
        optimizer.zero_grad(set_to_none=True)


class _MinibatchTotals:
    """What adds up over the micro-batches of one minibatch."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._policy_loss = 0.0
        self._num_low = 0.0
        self._num_high = 0.0

    def add(self, loss: Tensor, policy_loss: Tensor, policy: PolicyLoss, mask_nT: Tensor) -> None:
        self._loss += float(loss.detach())
        self._policy_loss += float(policy_loss.detach())
        self._num_low += float((policy.clipped_low & mask_nT).sum())
        self._num_high += float((policy.clipped_high & mask_nT).sum())

    def report(self, averages: Averages, num_tokens: int) -> None:
        low, high = self._num_low / num_tokens, self._num_high / num_tokens
        averages.add("loss", self._loss, 1.0)
        averages.add("policy_loss", self._policy_loss, 1.0)
        averages.add("clip_ratio/low_mean", low, 1.0)
        averages.add("clip_ratio/high_mean", high, 1.0)
        averages.add("clip_ratio/region_mean", low + high, 1.0)
        averages.low("clip_ratio/low_min", low)
        averages.high("clip_ratio/high_max", high)
