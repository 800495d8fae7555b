"""The first three parts of a step: rollout, reward, advantage.

Legend: P prompts, G completions of each, N completions, T tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.algorithms.importance import IsMode, mismatch_ratio
from rewardsvc.policy_client.algorithms.kl import kl_estimate
from rewardsvc.policy_client.algorithms.process_rewards import place_steps
from rewardsvc.policy_client.algorithms.shaping import soft_overlong_penalty
from rewardsvc.policy_client.algorithms.spec import AlgorithmSpec, KlPlace
from rewardsvc.policy_client.train.data import Example
from rewardsvc.policy_client.train.online.clock import PhaseClock
from rewardsvc.policy_client.train.online.config import OnlineConfig
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.experience import Experience
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.gather import Gathered, gather, gather_informative
from rewardsvc.policy_client.train.online.judge import Judged, Outcome, judge
from rewardsvc.policy_client.train.online.metrics import (
    completion_metrics,
    reward_metrics,
    zero_std_share,
)
from rewardsvc.policy_client.train.online.objectives import Objectives
from rewardsvc.policy_client.train.online.reference import ReferencePolicy
from rewardsvc.policy_client.train.online.rewards import MalformedRewardsError, Rewards
from rewardsvc.policy_client.train.online.rollout import FinishReason, Rollout
from rewardsvc.policy_client.train.online.sampler import CompletionSampler
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.online.sequences import Sequences
from rewardsvc.policy_client.train.online.steps import step_token_ends

DrawPrompts = Callable[[int], Sequence[Example]]
"""Gives the next so many prompts of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a step has to learn from.

    Attributes:
        experience: The rollouts, judged.
        rewards: float32 [P, G], those that advantages were taken of; NaN where there is none.
        metrics: Of rewards and completions.
        num_completions: Completions sampled, those that dynamic sampling dropped included.
        num_missing: How many of these have no reward.
        num_tokens: Tokens of their prompts and of themselves.
    """

    experience: Experience
    rewards: Tensor
    metrics: dict[str, float]
    num_completions: int
    num_missing: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Models that judge besides the reward.

    Attributes:
        policy: The policy itself, whose log-probs an importance correction needs.
        reference: None without a KL penalty to one.
        critic: None for algorithms without one.
        objectives: Makes one reward of several; None to take the source's value.
    """

    policy: PolicyForward
    reference: ReferencePolicy | None
    critic: Critic | None
    objectives: Objectives | None = None


class Collector:
    """Collects experience; the reference and the critic compute while rewards are on their way."""

    def __init__(
        self,
        sampler: CompletionSampler,
        judges: Judges,
        spec: AlgorithmSpec,
        config: OnlineConfig,
        *,
        tokenizer: PreTrainedTokenizerBase,
        clock: PhaseClock,
    ) -> None:
        """Puts the parts together.

        Args:
            sampler: Completes prompts and has completions scored.
            judges: Reference, critic, objectives.
            spec: The algorithm's row.
            config: Sampling, masking, shaping.
            tokenizer: Of the policy.
            clock: Is told of the phases rollout, reference, values and reward.
        """
        self._sampler = sampler
        self._judges = judges
        self._spec = spec
        self._config = config
        self._sampling = sampling_params(config)
        self._tokenizer = tokenizer
        self._clock = clock

    def collect(
        self,
        draw: DrawPrompts,
        generator: torch.Generator,
        *,
        kl_coef: float,
        baseline: float | None = None,
    ) -> Collected:
        """Experience with `num_generations` completions of each prompt.

        Args:
            draw: Gives prompts; asked once, or again where dynamic sampling needs more.
            generator: On the policy's device; completions are drawn from it.
            kl_coef: Weight of the KL penalty, used here unless its place is the loss.
            baseline: Of the moving baseline; None before the first batch.

        Raises:
            OutageError: If a service stays away for too long.
            MalformedRewardsError: If there is not one reward for each completion, or not one
                process reward for each step.
        """
        spec = self._spec
        gathered = self._gather(draw, generator)
        rollout = gathered.rollout
        sequences = Sequences.of(rollout, pad_id=int(self._tokenizer.pad_token_id))
        outcome_of, ref_NT, values_NT = self._judged_by_models(rollout, sequences)
        with self._clock("reward"):
            rewards = gathered.rewards()
        metrics = self._reward_metrics(gathered, rollout)
        shaped = self._shaped(rewards, rollout, metrics)
        rewards_N = torch.from_numpy(shaped.values).to(rollout.completion_ids.device)
        outcome = replace(
            outcome_of,
            rewards=rewards_N.view(-1, spec.num_generations),
            usable=self._usable(rollout, ref_NT),
        )
        if spec.process_weight > 0:
            outcome = self._with_steps(outcome, shaped, rollout)
        judged = judge(outcome, spec, kl_coef=kl_coef, baseline=baseline)
        if spec.num_generations > 1:
            metrics.update(zero_std_share(judged.zero_std))
        return Collected(
            experience=self._experience(rollout, sequences, judged, ref_NT, values_NT),
            rewards=judged.rewards,
            metrics=metrics,
            num_completions=gathered.num_completions,
            num_missing=int(metrics["rewards/num_missing"]),
            num_tokens=gathered.num_tokens,
        )

    def _gather(self, draw: DrawPrompts, generator: torch.Generator) -> Gathered:
        spec, config = self._spec, self._config

        def sample(num_prompts: int) -> Gathered:
            pending = self._sampler.sample(
                draw(num_prompts), spec.num_generations, self._sampling, generator
            )
            self._clock.add("rollout", pending.rollout_s)
            return gather(pending)

        if not spec.dynamic_sampling:
            return sample(config.num_prompts)
        return gather_informative(
            sample,
            config.num_prompts,
            num_generations=spec.num_generations,
            accuracy=config.dynamic_sampling_metric,
            max_rounds=config.dynamic_sampling_rounds,
            pad_id=int(self._tokenizer.pad_token_id),
        )

    def _judged_by_models(
        self, rollout: Rollout, sequences: Sequences
    ) -> tuple[Outcome, Tensor | None, Tensor | None]:
        """What reference and critic say, in an outcome whose rewards are still to come."""
        spec, critic, reference = self._spec, self._judges.critic, self._judges.reference
        ref_NT = values_NT = kl_NT = None
        mask_NT = rollout.completion_mask
        if reference is not None:
            with self._clock("reference"):
                ref_NT = reference.logprobs(rollout, sequences)
            if spec.kl_place is not KlPlace.LOSS:
                kl_NT = kl_estimate(
                    rollout.logprobs, ref_NT, mask_NT, spec.kl_estimator, clamps=spec.kl_clamps
                )
        if critic is not None:
            with self._clock("values"):
                values_NT = critic.in_batches(sequences, self._config.max_tokens_per_microbatch)
        outcome = Outcome(
            rewards=torch.empty(0),
            usable=torch.empty(0),
            completion_mask=mask_NT,
            kl=kl_NT,
            values=values_NT,
        )
        return outcome, ref_NT, values_NT

    def _reward_metrics(self, gathered: Gathered, rollout: Rollout) -> dict[str, float]:
        """Of the rewards as they came, before any filter or shaping."""
        return {
            **reward_metrics(
                gathered.all_rewards(),
                num_generations=self._spec.num_generations,
                true_quality=self._config.true_quality,
            ),
            **completion_metrics(rollout),
            **gathered.metrics,
        }

    def _shaped(self, rewards: Rewards, rollout: Rollout, metrics: dict[str, float]) -> Rewards:
        """Objectives, then the penalty for length; NaN stays NaN."""
        lengths_N = rollout.completion_mask.sum(1)
        if self._judges.objectives is not None:
            lengths: NDArray[np.float32] = lengths_N.cpu().numpy().astype(np.float32)
            rewards, moved = self._judges.objectives.combine(rewards, lengths)
            metrics.update(moved)
        cache = self._config.overlong_cache(self._spec)
        if cache:
            penalty_N = soft_overlong_penalty(
                lengths_N, max_length=self._config.max_new_tokens, cache_length=cache
            )
            penalty = self._config.overlong_penalty * penalty_N.cpu().numpy()
            metrics["rewards/overlong/mean"] = float(penalty.mean())
            rewards = replace(rewards, values=(rewards.values + penalty).astype(np.float32))
        if self._judges.objectives is not None or cache:
            present = rewards.values[~np.isnan(rewards.values)]
            if present.size:
                metrics["reward_shaped"] = float(present.mean())
        return rewards

    def _with_steps(self, outcome: Outcome, rewards: Rewards, rollout: Rollout) -> Outcome:
        if rewards.steps is None:
            if not np.isnan(rewards.values).all():
                raise MalformedRewardsError(
                    "the reward source gave no process rewards, and process_weight is "
                    f"{self._spec.process_weight:g}; name a scorer of type prm, or a function "
                    "that returns a list of numbers for each completion"
                )
            steps: Sequence[Sequence[float] | None] = [None] * rollout.num_completions
        else:
            steps = rewards.steps
        ends = [
            []
            if row is None
            else step_token_ends(self._tokenizer, ids, self._config.step_separator)
            for row, ids in zip(steps, rollout.completion_lists(), strict=True)
        ]
        try:
            step_rewards_NT, is_step_NT = place_steps(steps, ends, rollout.completion_mask)
        except ValueError as error:
            raise MalformedRewardsError(
                f"process rewards: {error}; step_separator is {self._config.step_separator!r}"
            ) from error
        return replace(outcome, step_rewards=step_rewards_NT, is_step=is_step_NT)

    def _usable(self, rollout: Rollout, ref_NT: Tensor | None) -> Tensor:
        """bool [N]: completions that may be learned from, as far as rewards do not say more."""
        mask_NT = rollout.completion_mask
        usable_N = ~rollout.aborted
        if self._config.mask_truncated_completions:
            stopped = [reason is FinishReason.STOP for reason in rollout.finish]
            usable_N &= torch.tensor(stopped, device=usable_N.device)
        if ref_NT is not None:
            usable_N &= (ref_NT.isfinite() | ~mask_NT).all(1)
        return usable_N

    def _experience(
        self,
        rollout: Rollout,
        sequences: Sequences,
        judged: Judged,
        ref_NT: Tensor | None,
        values_NT: Tensor | None,
    ) -> Experience:
        spec, num_rows = self._spec, rollout.num_completions
        old_NT, mismatch_NT = rollout.logprobs, None
        mode = spec.importance.mode
        if mode is not IsMode.OFF and not spec.single_update:
            # The policy will move before the last minibatch: what it says now has to be kept.
            with self._clock("old_logprobs"):
                max_tokens = self._config.max_tokens_per_microbatch
                old_NT = self._judges.policy.in_batches(sequences, max_tokens).logprobs
            mismatch_NT = mismatch_ratio(old_NT, rollout.logprobs, rollout.completion_mask, mode)
        device = rollout.completion_ids.device
        return Experience(
            sequences=sequences,
            groups=torch.arange(num_rows, device=device) // spec.num_generations,
            mask=judged.mask,
            old_logprobs=old_NT,
            sampler_logprobs=rollout.logprobs,
            advantages=judged.advantages,
            ref_logprobs=ref_NT,
            returns=judged.returns,
            old_values=values_NT,
            mismatch=mismatch_NT,
        )


def sampling_params(config: OnlineConfig) -> SamplingParams:
    """How a run samples, in training and in evaluation."""
    return SamplingParams(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
    )
