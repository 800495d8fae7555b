"""How well the policy does on held-out prompts, greedily and when sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewardsvc.policy_client.train.data.examples import Example
from rewardsvc.policy_client.train.online.metrics import mean_of_present
from rewardsvc.policy_client.train.online.rewards import Rewards
from rewardsvc.policy_client.train.online.sampler import CompletionSampler
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.run_data import SampleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        metrics: `eval/greedy_accuracy`, `eval/sampled_accuracy` (shares of completions, of those
            that have a reward, whose reward is at least the success reward), `eval/greedy_reward`,
            `eval/sampled_reward`, `eval/num_prompts`, `eval/num_missing`; with a true quality also
            `eval/greedy_true_quality`, `eval/sampled_true_quality`.
        samples: The first greedy completions, always of the same prompts.
    """

    metrics: dict[str, float]
    samples: list[SampleRow]


class Evaluator:
    """Evaluates on a fixed list of prompts, with randomness of its own.

    Training draws nothing from it: with or without evaluations a run takes the same course.
    """

    def __init__(
        self,
        sampler: CompletionSampler,
        examples: Sequence[Example],
        sampling: SamplingParams,
        *,
        success_reward: float,
        true_quality: str | None,
        seed: int,
        device: torch.device,
    ) -> None:
        """Puts the parts together.

        Args:
            sampler: Completes and scores.
            examples: Held-out prompts, each completed once greedily and once by sampling.
            sampling: As in training.
            success_reward: A completion counts as right from this reward on.
            true_quality: Component of the reward to report beside it; None for none.
            seed: The same prompts get the same random numbers at every evaluation.
            device: Of the policy.
        """
        self._sampler = sampler
        self._examples = list(examples)
        self._sampled = sampling
        self._greedy = dataclasses.replace(sampling, greedy=True)
        self._success_reward = success_reward
        self._true_quality = true_quality
        self._seed = seed
        self._device = device

    def run(self, num_samples: int) -> Evaluation:
        """Evaluates the policy as it is now.

        Args:
            num_samples: Completions to give back for reading.
        """
        generator = torch.Generator(self._device).manual_seed(self._seed)
        pending = {
            "greedy": self._sampler.sample(self._examples, 1, self._greedy, generator),
            "sampled": self._sampler.sample(self._examples, 1, self._sampled, generator),
        }
        metrics = {"eval/num_prompts": float(len(self._examples)), "eval/num_missing": 0.0}
        rewards: dict[str, Rewards] = {}
        for name, batch in pending.items():
            rewards[name] = batch.rewards()
            values = rewards[name].values
            present = values[~np.isnan(values)]
            metrics["eval/num_missing"] += len(values) - len(present)
            if len(present):
                right = present >= self._success_reward
                metrics[f"eval/{name}_accuracy"] = float(right.mean())
                metrics[f"eval/{name}_reward"] = float(present.mean())
            if self._true_quality is not None:
                quality = rewards[name].component(self._true_quality)
                metrics.update(mean_of_present(f"eval/{name}_true_quality", quality))
        rows = self._sampler.rows(pending["greedy"], rewards["greedy"], num_samples)
        return Evaluation(metrics=metrics, samples=rows)
