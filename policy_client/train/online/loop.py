"""The loop of every online algorithm: rollout, reward, advantage, loss, step.

What happens when rewards fail:

* a completion without a reward is masked, and counted;
* a step in which nothing can be learned from is skipped, and counted;
* too large a share of completions without rewards, over a window of steps, stops the run;
* a service that is away is waited for. If it stays away for too long, the run stops with a
  checkpoint of the last whole step, random states included: resumed, it takes the same course as if
  nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rewardsvc.policy_client.algorithms.kl import KlEstimator, kl_estimate
from rewardsvc.policy_client.algorithms.kl_control import KlController
from rewardsvc.policy_client.algorithms.masking import masked_sum
from rewardsvc.policy_client.algorithms.presets import AlgorithmSpec
from rewardsvc.policy_client.train.checkpoint import (
    checkpoint_to_resume,
    load_checkpoint,
    save_checkpoint,
)
from rewardsvc.policy_client.train.data import PromptSampler
from rewardsvc.policy_client.train.models import save_pretrained
from rewardsvc.policy_client.train.online.build import Given, Parts, build_parts, eos_ids
from rewardsvc.policy_client.train.online.clock import PhaseClock
from rewardsvc.policy_client.train.online.collector import Collector, Judges, sampling_params
from rewardsvc.policy_client.train.online.config import OnlineConfig, resolve
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.evaluate import Evaluator
from rewardsvc.policy_client.train.online.experience import (
    Experience,
)
from rewardsvc.policy_client.train.online.outage import OutageError, Patience
from rewardsvc.policy_client.train.online.reference import ReferencePolicy
from rewardsvc.policy_client.train.online.reward_desk import (
    MissingRewardsError,
    MissingRewardWatch,
    RewardDesk,
)
from rewardsvc.policy_client.train.online.rewards import RewardSource
from rewardsvc.policy_client.train.online.rollout import RolloutEngine
from rewardsvc.policy_client.train.online.sampler import CompletionSampler
from rewardsvc.policy_client.train.online.update import UpdateParams, Updater
from rewardsvc.policy_client.train.run_log import RunLog

FINAL_FOLDER = "final"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineResult:
    """What a run has come to.

    Attributes:
        model_dir: The final policy and its tokenizer.
        num_steps: Steps in all, those before a resume and skipped ones included.
        num_skipped_steps: Steps without an update, for want of rewards.
        metrics: Of the last step that this process took; empty if it took none.
        eval_before: Held-out metrics of the start; empty without held-out prompts or after a
            resume.
        eval_after: Held-out metrics of the end; empty without held-out prompts.
    """

    model_dir: Path
    num_steps: int
    num_skipped_steps: int
    metrics: Mapping[str, float]
    eval_before: Mapping[str, float]
    eval_after: Mapping[str, float]


def run_online(
    algorithm: str,
    config: OnlineConfig,
    *,
    reward: RewardSource | None = None,
    policy: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reference: ReferencePolicy | None = None,
    engine: RolloutEngine | None = None,
) -> OnlineResult:
    """Trains a policy with one of the algorithms in `PRESETS`, and saves it.

    Args:
        algorithm: "ppo", "grpo", "rloo" or another row.
        config: The run; the algorithm's row decides what it leaves open.
        reward: Where rewards come from; `config.reward` if None.
        policy: A causal model on its device; it is changed in place. `config.model` if None.
        tokenizer: Of `policy`.
        reference: For the KL penalty; `config.reference` or a frozen copy of the policy if None.
        engine: Makes completions; plain transformers if None.

    Raises:
        ConfigError: If the configuration cannot be carried out; names the field and the fix.
        OutageError: If a service stayed away for longer than `max_service_outage_s`.
        MissingRewardsError: If too many completions had no reward.
        MalformedRewardsError: If a reward source gave another number of rewards than completions.
    """
    spec = resolve(algorithm, config)
    set_seed(config.seed)
    patience = Patience(config.max_service_outage_s)
    with ExitStack() as clients:
        parts = build_parts(
            config,
            spec,
            Given(
                patience=patience,
                clients=clients,
                reward=reward,
                policy=policy,
                tokenizer=tokenizer,
                reference=reference,
            ),
        )
        desk = RewardDesk(parts.reward, patience, num_threads=config.reward_threads)
        clients.callback(desk.close)
        if engine is None:
            engine = TransformersRollout(
                parts.policy,
                eos_ids=eos_ids(parts.policy, parts.tokenizer),
                pad_id=int(parts.tokenizer.pad_token_id),
            )
        return _Loop(algorithm, config, spec, (parts, desk, engine, patience)).run()


class _Loop:
    def __init__(
        self,
        algorithm: str,
        config: OnlineConfig,
        spec: AlgorithmSpec,
        built: tuple[Parts, RewardDesk, RolloutEngine, Patience],
    ) -> None:
        self._algorithm = algorithm
        self._config = config
        self._parts, desk, engine, self._patience = built
        device = self._parts.policy.device
        self._clock = PhaseClock()
        sampler = CompletionSampler(
            engine, self._parts.tokenizer, desk, chunk_prompts=config.rollout_chunk_prompts
        )
        self._collector = Collector(
            sampler,
            Judges(reference=self._parts.reference, critic=self._parts.learner.critic),
            spec,
            config,
            pad_id=int(self._parts.tokenizer.pad_token_id),
            clock=self._clock,
        )
        self._evaluator = Evaluator(
            sampler,
            self._parts.held_out,
            sampling_params(config),
            success_reward=config.success_reward,
            true_quality=config.true_quality,
            seed=config.seed,
            device=device,
        )
        self._updater = Updater(
            self._parts.learner,
            spec,
            UpdateParams(
                max_tokens_per_microbatch=config.max_tokens_per_microbatch,
                max_grad_norm=config.max_grad_norm,
                max_new_tokens=config.max_new_tokens,
                entropy_coef=config.entropy_coef,
                value_clip=config.value_clip,
            ),
        )
        self._prompts = PromptSampler(len(self._parts.train), config.num_prompts, config.seed)
        self._watch = MissingRewardWatch(
            config.max_missing_reward_share, config.missing_reward_window
        )
        self._kl_control = KlController(target=config.kl_target, horizon=config.kl_horizon)
        self._kl_coef = spec.kl_coef
        self._generators = {
            "rollout": torch.Generator(device).manual_seed(config.seed),
            "shuffle": torch.Generator().manual_seed(config.seed),
        }
        self._num_tokens = 0
        self._num_skipped = 0

    def run(self) -> OnlineResult:
        config, parts = self._config, self._parts
        first = self._resume()
        metrics: dict[str, float] = {}
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        with RunLog(
            config.output_dir,
            algorithm=self._algorithm,
            total_steps=config.max_steps,
            config=config.model_dump(mode="json", by_alias=True),
        ) as log:
            log.rewind(first if first else -1)
            if first == 0 and parts.held_out:
                before = self._evaluate(0, "before", log)
                log.step(0, before, self._clock.take())
            for step in range(first + 1, config.max_steps + 1):
                metrics = self._whole_step(step)
                last = step == config.max_steps
                try:
                    if parts.held_out and (last or step % config.eval_steps == 0):
                        after = self._evaluate(step, "after" if last else "eval", log)
                        metrics.update(after)
                    if last or step % config.save_steps == 0:
                        with self._clock("checkpoint"):
                            self._save(step, self._state())
                except OutageError:
                    self._save(step, self._state())
                    raise
                finally:
                    log.step(step, metrics, self._clock.take())
        model_dir = save_pretrained(parts.policy, parts.tokenizer, config.output_dir / FINAL_FOLDER)
        return OnlineResult(
            model_dir=model_dir,
            num_steps=config.max_steps,
            num_skipped_steps=self._num_skipped,
            metrics=metrics,
            eval_before=before,
            eval_after=after,
        )

    def _whole_step(self, step: int) -> dict[str, float]:
        """One step; if it cannot be finished, saves the state before it and raises the error."""
        state = self._state()
        generators = {name: one.get_state() for name, one in self._generators.items()}
        began = time.perf_counter()
        try:
            metrics = self._step()
        except (OutageError, MissingRewardsError):
            # Nothing has been updated yet: only what the rollout drew has to be put back.
            for name, one in self._generators.items():
                one.set_state(generators[name])
            self._save(step - 1, state)
            raise
        metrics["step_time"] = time.perf_counter() - began
        return metrics

    def _step(self) -> dict[str, float]:
        examples = [self._parts.train[row] for row in self._prompts.next_batch()]
        found = self._collector.collect(
            examples, self._generators["rollout"], kl_coef=self._kl_coef
        )
        self._watch.record(found.num_missing, found.num_completions)
        learned = self._learn(found.experience)
        self._num_tokens += found.num_tokens
        return {
            **found.metrics,
            **learned,
            "rewards/outage_s": self._patience.take_waited_s(),
            "num_tokens": float(self._num_tokens),
            "epoch": self._prompts.epoch,
        }

    def _learn(self, experience: Experience) -> dict[str, float]:
        """Updates the weights, unless there is nothing to learn from."""
        optimizer = self._parts.learner.optimizer
        metrics = {"learning_rate": float(optimizer.param_groups[0]["lr"])}
        if not bool(experience.mask.any()):
            # The schedule counts updates: a skipped step does not use up warm-up or decay.
            self._num_skipped += 1
            return {**metrics, "num_skipped_steps": float(self._num_skipped)}
        with self._clock("update"):
            updated = self._updater.update(
                experience, kl_coef=self._kl_coef, generator=self._generators["shuffle"]
            )
        metrics.update(updated, num_skipped_steps=float(self._num_skipped))
        if experience.ref_logprobs is not None:
            metrics.update(self._steer_kl(experience, experience.ref_logprobs))
        for scheduler in self._parts.schedulers.values():
            scheduler.step()
        return metrics

    def _steer_kl(self, experience: Experience, ref_NT: Tensor) -> dict[str, float]:
        """Notes the rollout's KL, and lets the controller set the next step's coefficient."""
        mask_NT = experience.mask
        kl_NT = kl_estimate(experience.old_logprobs, ref_NT, mask_NT, KlEstimator.K1)
        num_completions = int(mask_NT.any(1).sum())
        kl = float(masked_sum(kl_NT, mask_NT)) / num_completions
        metrics = {"kl_per_completion": kl, "kl_coef": self._kl_coef}
        self._kl_coef = self._kl_control.updated(self._kl_coef, kl=kl, num_samples=num_completions)
        return metrics

    def _evaluate(self, step: int, tag: str, log: RunLog) -> dict[str, float]:
        with self._clock("evaluate"):
            evaluation = self._evaluator.run(self._config.num_logged_samples)
        log.samples(step, tag, evaluation.samples)
        return evaluation.metrics

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights, moments and random states; JSON values."""
        return {
            "algorithm": self._algorithm,
            "prompts": self._prompts.state_dict(),
            "kl_coef": self._kl_coef,
            "missing": self._watch.state_dict(),
            "num_tokens": self._num_tokens,
            "num_skipped": self._num_skipped,
        }

    def _objects(self) -> dict[str, Any]:
        return {
            "modules": self._parts.modules,
            "optimizers": self._parts.optimizers,
            "schedulers": self._parts.schedulers,
            "generators": self._generators,
        }

    def _save(self, step: int, state: dict[str, Any]) -> None:
        save_checkpoint(
            self._config.output_dir,
            step,
            **self._objects(),
            state=state,
            keep=self._config.save_total_limit,
        )

    def _resume(self) -> int:
        """Loads what the configuration says to resume from, and gives the steps done."""
        path = checkpoint_to_resume(self._config.output_dir, self._config.resume)
        if path is None:
            return 0
        loaded = load_checkpoint(path, **self._objects())
        state = loaded.state
        if state["algorithm"] != self._algorithm or loaded.step > self._config.max_steps:
            raise ValueError(
                f"resume: {path} has {loaded.step} steps of {state['algorithm']}, and this run is "
                f"{self._config.max_steps} steps of {self._algorithm}; resume with the "
                "configuration that it was saved with, or raise max_steps"
            )
        self._prompts.load_state_dict(state["prompts"])
        self._watch.load_state_dict(state["missing"])
        self._kl_coef = float(state["kl_coef"])
        self._num_tokens = int(state["num_tokens"])
        self._num_skipped = int(state["num_skipped"])
        return loaded.step
