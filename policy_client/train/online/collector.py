"""The first three parts of a step: rollout, reward, advantage.

Legend: N completions, T tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.kl import kl_estimate
from rewardsvc.policy_client.algorithms.presets import AlgorithmSpec, KlPlace
from rewardsvc.policy_client.train.data import Example
from rewardsvc.policy_client.train.online.clock import PhaseClock
from rewardsvc.policy_client.train.online.config import OnlineConfig
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.experience import (
    AdvantageParams,
    Experience,
    Outcome,
    judge,
)
from rewardsvc.policy_client.train.online.metrics import (
    completion_metrics,
    reward_metrics,
    zero_std_share,
)
from rewardsvc.policy_client.train.online.reference import ReferencePolicy
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout
from rewardsvc.policy_client.train.online.sampler import CompletionSampler
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.online.sequences import Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a step has to learn from.

    Attributes:
        experience: The rollouts, judged.
        metrics: Of rewards and completions.
        num_completions: N.
        num_missing: Completions without a reward.
        num_tokens: Tokens of prompts and completions.
    """

    experience: Experience
    metrics: dict[str, float]
    num_completions: int
    num_missing: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Models that judge besides the reward.

    Attributes:
        reference: None without a KL penalty.
        critic: None for algorithms without one.
    """

    reference: ReferencePolicy | None
    critic: Critic | None


class Collector:
    """Collects experience; the reference and the critic compute while rewards are on their way."""

    def __init__(
        self,
        sampler: CompletionSampler,
        judges: Judges,
        spec: AlgorithmSpec,
        config: OnlineConfig,
        *,
        pad_id: int,
        clock: PhaseClock,
    ) -> None:
        """Puts the parts together.

        Args:
            sampler: Completes prompts and has completions scored.
            judges: Reference and critic.
            spec: The algorithm's row.
            config: Sampling, advantages, masking.
            pad_id: Fills up sequences.
            clock: Is told of the phases rollout, reference, values and reward.
        """
        self._sampler = sampler
        self._judges = judges
        self._spec = spec
        self._config = config
        self._sampling = sampling_params(config)
        self._pad_id = pad_id
        self._clock = clock

    def collect(
        self, examples: Sequence[Example], generator: torch.Generator, *, kl_coef: float
    ) -> Collected:
        """Experience with `num_generations` completions of each example.

        Args:
            examples: Prompts.
            generator: On the policy's device; completions are drawn from it.
            kl_coef: Weight of the KL penalty, used here if its place is the reward.

        Raises:
            OutageError: If a service stays away for too long.
            MalformedRewardsError: If there is not one reward for each completion.
        """
        spec, critic, reference = self._spec, self._judges.critic, self._judges.reference
        pending = self._sampler.sample(examples, spec.num_generations, self._sampling, generator)
        self._clock.add("rollout", pending.rollout_s)
        rollout = pending.rollout
        sequences = Sequences.of(rollout, pad_id=self._pad_id)
        ref_NT = values_NT = kl_NT = None
        if reference is not None:
            with self._clock("reference"):
                ref_NT = reference.logprobs(rollout, sequences)
            if spec.kl_place is KlPlace.REWARD:
                mask_NT = rollout.completion_mask
                kl_NT = kl_estimate(rollout.logprobs, ref_NT, mask_NT, spec.kl_estimator)
        if critic is not None:
            with self._clock("values"):
                values_NT = critic.in_batches(sequences, self._config.max_tokens_per_microbatch)
        with self._clock("reward"):
            rewards = pending.rewards()
        rewards_N = torch.from_numpy(rewards.values).to(rollout.completion_ids.device)
        judged = judge(
            Outcome(
                rewards=rewards_N.view(-1, spec.num_generations),
                usable=self._usable(rollout, ref_NT),
                completion_mask=rollout.completion_mask,
                kl=kl_NT,
                values=values_NT,
            ),
            spec,
            AdvantageParams(
                kl_coef=kl_coef,
                gamma=self._config.gamma,
                lam=self._config.lam,
                eps=self._config.advantage_eps,
            ),
        )
        metrics = {
            **reward_metrics(
                rewards,
                num_generations=spec.num_generations,
                true_quality=self._config.true_quality,
            ),
            **completion_metrics(rollout),
        }
        if spec.num_generations > 1:
            metrics.update(zero_std_share(judged.zero_std))
        return Collected(
            experience=Experience(
                sequences=sequences,
                mask=judged.mask,
                old_logprobs=rollout.logprobs,
                draw_logprobs=rollout.draw_logprobs,
                advantages=judged.advantages,
                ref_logprobs=ref_NT,
                returns=judged.returns,
                old_values=values_NT,
            ),
            metrics=metrics,
            num_completions=rollout.num_completions,
            num_missing=int(metrics["rewards/num_missing"]),
            num_tokens=sequences.num_tokens,
        )

    def _usable(self, rollout: Rollout, ref_NT: Tensor | None) -> Tensor:
        """bool [N]: completions that may be learned from, as far as rewards do not say more."""
        mask_NT = rollout.completion_mask
        usable_N = torch.ones_like(mask_NT[:, 0])
        if self._config.mask_truncated_completions:
            stopped = [reason is FinishReason.STOP for reason in rollout.finish]
            usable_N &= torch.tensor(stopped, device=usable_N.device)
        if ref_NT is not None:
            usable_N &= (ref_NT.isfinite() | ~mask_NT).all(1)
        return usable_N


def sampling_params(config: OnlineConfig) -> SamplingParams:
    """How a run samples, in training and in evaluation."""
    return SamplingParams(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
    )
