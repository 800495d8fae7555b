"""The loop of every online algorithm: rollout, reward, advantage, loss, step.

What happens when rewards fail:

* a completion without a reward is masked, and counted;
* a step in which nothing can be learned from is skipped, and counted;
* too large a share of completions without rewards, over a window of steps, stops the run;
* a service that is away is waited for. If it stays away for too long, the run stops with a
  checkpoint of the last whole step, random states included: resumed, it takes the same course as if
  nothing had happened.

A checkpoint can also be of the middle of a step: it then holds the rollout with its rewards and
advantages, the place in its use, and the gradients gathered so far. It has the number of the last
whole step, and takes the place of that one's checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rewardsvc.policy_client.algorithms.kl import KlEstimator, kl_estimate
from rewardsvc.policy_client.algorithms.masking import masked_sum
from rewardsvc.policy_client.algorithms.spec import AlgorithmSpec, KlAnchor
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.launch import check_patience, join_world
from rewardsvc.policy_client.train.models import save_pretrained
from rewardsvc.policy_client.train.monitor.rules import Action
from rewardsvc.policy_client.train.monitor.watch import Judgement, PolicyCollapsedError
from rewardsvc.policy_client.train.online.build import Given, Parts, build_parts, eos_ids
from rewardsvc.policy_client.train.online.clock import PhaseClock
from rewardsvc.policy_client.train.online.collector import (
    Collector,
    Judges,
    sampling_params,
)
from rewardsvc.policy_client.train.online.config import OnlineConfig
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.evaluate import Evaluator
from rewardsvc.policy_client.train.online.experience import Experience
from rewardsvc.policy_client.train.online.minder import Minder
from rewardsvc.policy_client.train.online.outage import OutageError, Patience
from rewardsvc.policy_client.train.online.preempt import PreemptedError, StopFlag
from rewardsvc.policy_client.train.online.reference import ReferencePolicy
from rewardsvc.policy_client.train.online.resolve import resolve
from rewardsvc.policy_client.train.online.reward_desk import MissingRewardsError, RewardDesk
from rewardsvc.policy_client.train.online.rewards import RewardSource
from rewardsvc.policy_client.train.online.rollout import RolloutEngine
from rewardsvc.policy_client.train.online.run_state import RunState
from rewardsvc.policy_client.train.online.sampler import CompletionSampler
from rewardsvc.policy_client.train.online.saving import InHand, Saver
from rewardsvc.policy_client.train.online.update import (
    UpdateParams,
    UpdateProgress,
    Updater,
)
from rewardsvc.policy_client.train.run_log import RunLog, open_log
from rewardsvc.policy_client.train.sharding import gathered

FINAL_FOLDER = "final"

_RESEED_STRIDE = 1_000_003
"""A prime: the seeds of roll-backs and of other runs do not meet."""


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
        FloatingPointError: If too many gradients in a row were not finite.
        PolicyCollapsedError: If a rule of the monitor says to stop; a checkpoint has been saved.
        PreemptedError: If the process was sent SIGTERM; a checkpoint has been saved.
    """
    spec = resolve(algorithm, config)
    world = join_world(config)
    check_patience(world, config.collective_timeout_s, config.max_service_outage_s)
    set_seed(config.seed)
    patience = Patience(config.max_service_outage_s)
    with ExitStack() as clients, world.watched():
        parts = build_parts(
            config,
            spec,
            Given(
                patience=patience,
                clients=clients,
                world=world,
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
        return _Loop(algorithm, config, spec, (parts, desk, engine, patience, world)).run()


class _Loop:
    def __init__(
        self,
        algorithm: str,
        config: OnlineConfig,
        spec: AlgorithmSpec,
        built: tuple[Parts, RewardDesk, RolloutEngine, Patience, World],
    ) -> None:
        self._algorithm = algorithm
        self._config = config
        self._spec = spec
        self._parts, desk, engine, self._patience, self._world = built
        device = self._parts.policy.device
        self._clock = PhaseClock()
        self._stop = StopFlag()
        self._state = RunState(config, spec, self._parts.train, device)
        sampler = CompletionSampler(
            engine,
            self._parts.tokenizer,
            desk,
            chunk_prompts=config.rollout_chunk_prompts,
            seed_each=config.seed_each_completion,
            world=self._world,
            weights=lambda: gathered(self._parts.policy),
        )
        learner = self._parts.learner
        self._collector = Collector(
            sampler,
            Judges(
                policy=learner.forward,
                reference=self._parts.reference,
                critic=learner.critic,
                objectives=self._state.objectives,
            ),
            spec,
            config,
            tokenizer=self._parts.tokenizer,
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
            learner,
            spec,
            UpdateParams(
                max_tokens_per_microbatch=config.max_tokens_per_microbatch,
                max_grad_norm=config.max_grad_norm,
                max_new_tokens=config.max_new_tokens,
                value_clip=config.value_clip,
                max_nonfinite_updates=config.max_nonfinite_updates,
                activation_checkpointing=config.activation_checkpointing,
            ),
            world=self._world,
        )
        self._state.attach(self._updater, learner.ptx)
        self._saver = Saver(algorithm, config, self._parts, self._state, world=self._world)
        self._minder = Minder(
            self._state.monitor,
            self._parts.tokenizer,
            config.output_dir if self._world.is_main else None,
            can_raise_kl=self._parts.reference is not None,
        )
        self._in_hand: InHand | None = None

    def run(self) -> OnlineResult:
        config, parts = self._config, self._parts
        first, self._in_hand = self._saver.resume()
        metrics: dict[str, float] = {}
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        with (
            open_log(
                config.output_dir if self._world.is_main else None,
                algorithm=self._algorithm,
                total_steps=config.max_steps,
                config=config.model_dump(mode="json", by_alias=True),
            ) as log,
            self._stop.listening(),
        ):
            log.rewind(first if first or self._in_hand else -1)
            if first == 0 and parts.held_out and self._in_hand is None:
                before = self._evaluate(0, "before", log)
                log.step(0, before, self._clock.take())
            step = first
            while step < config.max_steps:
                step += 1
                metrics = self._whole_step(step)
                last = step == config.max_steps
                judgement = self._minder.mind(step, metrics)
                metrics.update(judgement.metrics)
                if judgement.action in (Action.ROLL_BACK, Action.STOP):
                    log.step(step, metrics, self._clock.take())
                    step = self._go_back(step, judgement, log)
                    continue
                if judgement.action is Action.RAISE_KL:
                    self._state.kl_coef = self._state.monitor.raised_kl(self._state.kl_coef)
                try:
                    if parts.held_out and (last or step % config.eval_steps == 0):
                        after = self._evaluate(step, "after" if last else "eval", log)
                        metrics.update(after)
                    if last or step % config.save_steps == 0:
                        with self._clock("checkpoint"):
                            self._saver.save(step, self._saver.document())
                except OutageError:
                    self._saver.save(step, self._saver.document())
                    raise
                finally:
                    log.step(step, metrics, self._clock.take())
                if self._world.any(self._stop.is_set) and not last:
                    self._preempt(step, None)
        model_dir = save_pretrained(
            parts.policy, parts.tokenizer, config.output_dir / FINAL_FOLDER, world=self._world
        )
        return OnlineResult(
            model_dir=model_dir,
            num_steps=config.max_steps,
            num_skipped_steps=self._state.num_skipped,
            metrics=metrics,
            eval_before=before,
            eval_after=after,
        )

    def _go_back(self, step: int, judgement: Judgement, log: RunLog) -> int:
        """Back to a checkpoint from before the trouble, on another course and with more KL.

        Returns:
            The step that the run is at then.

        Raises:
            PolicyCollapsedError: If the rule says to stop, or there is no such checkpoint.
        """
        alarm, state = judgement.alarm, self._state
        assert alarm is not None  # it asked for the action
        back = None
        if judgement.action is Action.ROLL_BACK:
            back = self._saver.go_back(alarm.since)
        if back is None:
            self._saver.save(step, self._saver.document())
            raise PolicyCollapsedError(f"stopped at step {step}. {alarm.text}")
        state.monitor.rolled_back()
        state.reseed(self._config.seed + _RESEED_STRIDE * state.monitor.num_roll_backs)
        if self._parts.reference is not None:
            state.kl_coef = state.monitor.raised_kl(state.kl_coef)
        self._saver.save(back, self._saver.document())
        log.rewind(back)
        self._minder.note(judgement)
        return back

    def _whole_step(self, step: int) -> dict[str, float]:
        """One step; if it cannot be finished, saves the state before it and raises the error."""
        document = self._saver.document()
        generators = {name: one.get_state() for name, one in self._state.generators.items()}
        began = time.perf_counter()
        try:
            in_hand = self._in_hand or self._collect()
        except (OutageError, MissingRewardsError):
            # Nothing has been updated yet: only what the rollout drew has to be put back.
            for name, one in self._state.generators.items():
                one.set_state(generators[name])
            self._saver.save(step - 1, document)
            raise
        self._in_hand = None
        learned = self._learn(in_hand, step)
        self._state.num_tokens += in_hand.num_tokens
        metrics = {
            **in_hand.metrics,
            **learned,
            "num_tokens": float(self._state.num_tokens),
            "epoch": self._state.epoch,
            "step_time": time.perf_counter() - began,
        }
        # What the monitor decides on is one thing for all, times and outages included.
        return self._world.from_main(metrics)

    def _collect(self) -> InHand:
        state = self._state
        found = self._collector.collect(
            state.draw,
            state.generators["rollout"],
            kl_coef=state.kl_coef,
            baseline=state.baseline,
        )
        state.watch.record(found.num_missing, found.num_completions)
        metrics = {
            **found.metrics,
            **self._minder.describe(found.experience.sequences, found.rewards),
            "rewards/outage_s": self._patience.take_waited_s(),
        }
        if state.baseline is not None:
            metrics["baseline"] = state.baseline
        state.move_baseline(found.rewards)
        return InHand(
            experience=found.experience,
            metrics=metrics,
            num_tokens=found.num_tokens,
            progress=UpdateProgress.start(),
        )

    def _learn(self, in_hand: InHand, step: int) -> dict[str, float]:
        """Updates the weights, unless there is nothing to learn from."""
        state, experience = self._state, in_hand.experience
        optimizer = self._parts.learner.optimizer
        metrics = {"learning_rate": float(optimizer.param_groups[0]["lr"])}
        if not bool(experience.mask.any()):
            # The schedule counts updates: a skipped step does not use up warm-up or decay.
            state.num_skipped += 1
            return {**metrics, "num_skipped_steps": float(state.num_skipped)}
        num_pauses = 0

        def pause(_: UpdateProgress) -> None:
            nonlocal num_pauses
            num_pauses += 1
            every = self._config.save_micro_steps
            if self._world.any(self._stop.is_set):
                self._preempt(step - 1, in_hand)
            if every is not None and num_pauses % every == 0:
                with self._clock("checkpoint"):
                    self._saver.save(step - 1, self._saver.document(in_hand), in_hand)

        with self._clock("update"):
            updated = self._updater.update(
                experience,
                kl_coef=state.kl_coef,
                generator=state.generators["shuffle"],
                progress=in_hand.progress,
                pause=pause,
            )
        metrics.update(updated, num_skipped_steps=float(state.num_skipped))
        metrics.update(self._steer_kl(experience, updated))
        # A step whose gradients were all dropped does not use up warm-up or decay either.
        stepped = {"policy": "grad_norm", "critic": "critic/grad_norm"}
        for name, scheduler in self._parts.schedulers.items():
            if stepped[name] in updated:
                scheduler.step()
        return metrics

    def _steer_kl(self, experience: Experience, updated: Mapping[str, float]) -> dict[str, float]:
        """Notes the KL to the anchor, and lets the rule set the next step's coefficient."""
        mask_NT, ref_NT = experience.mask, experience.ref_logprobs
        num_completions, num_tokens = int(mask_NT.any(1).sum()), int(mask_NT.sum())
        metrics = {"kl_coef": self._state.kl_coef}
        if self._spec.kl_anchor is KlAnchor.OLD_POLICY:
            per_token = updated["kl_old"]
            per_completion = per_token * num_tokens / num_completions
        elif ref_NT is not None:
            total = _total_kl(experience.old_logprobs, ref_NT, mask_NT)
            per_token, per_completion = total / num_tokens, total / num_completions
            metrics["kl_per_completion"] = per_completion
        else:
            return {}
        self._state.steer_kl(
            per_completion=per_completion, per_token=per_token, num_completions=num_completions
        )
        return metrics

    def _evaluate(self, step: int, tag: str, log: RunLog) -> dict[str, float]:
        with self._clock("evaluate"):
            evaluation = self._evaluator.run(self._config.num_logged_samples)
        log.samples(step, tag, evaluation.samples)
        return evaluation.metrics

    def _preempt(self, step: int, in_hand: InHand | None) -> None:
        self._saver.save(step, self._saver.document(in_hand), in_hand)
        where = "" if in_hand is None else ", in the middle of the next"
        raise PreemptedError(
            f"the process was sent SIGTERM: saved after step {step}{where}; go on with resume: true"
        )


def _total_kl(old_NT: Tensor, ref_NT: Tensor, mask_NT: Tensor) -> float:
    return float(masked_sum(kl_estimate(old_NT, ref_NT, mask_NT, KlEstimator.K1), mask_NT))
