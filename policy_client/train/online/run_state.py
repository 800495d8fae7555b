"""All of a run that a step changes, beside weights and moments, in one place: what a checkpoint
must hold so that a resumed run takes the course that it would have taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.advantages import moving_baseline
from rewardsvc.policy_client.algorithms.kl_control import DoublingRule, KlController, KlRule
from rewardsvc.policy_client.algorithms.spec import AdvantageEstimator, AlgorithmSpec
from rewardsvc.policy_client.train.data import Example, PromptSampler
from rewardsvc.policy_client.train.monitor.watch import Watch
from rewardsvc.policy_client.train.online.config import OnlineConfig
from rewardsvc.policy_client.train.online.objectives import Objectives
from rewardsvc.policy_client.train.online.ptx import PtxMix
from rewardsvc.policy_client.train.online.reward_desk import MissingRewardWatch
from rewardsvc.policy_client.train.online.update import Updater


class RunState:
    """What moves with every step.

    Attributes:
        generators: Random generators by name: "rollout" on the policy's device, "shuffle" on the
            CPU.
        watch: Of missing rewards.
        monitor: Of hacking and collapse.
        objectives: None where the reward's own value is taken.
        kl_coef: The KL penalty's present weight.
        baseline: The moving baseline; None before the first batch and for other estimators.
        num_tokens: Tokens sampled so far.
        num_skipped: Steps without an update.
    """

    def __init__(
        self, config: OnlineConfig, spec: AlgorithmSpec, train: Sequence[Example], device: Any
    ) -> None:
        """The state before the first step."""
        self._spec = spec
        self._train = train
        self._prompts = PromptSampler(len(train), config.num_prompts, config.seed)
        self._adaptive = KlController(
            target=spec.kl_target if spec.kl_rule is KlRule.ADAPTIVE else None,
            horizon=config.kl_horizon,
        )
        self._doubling = None
        if spec.kl_target is not None and spec.kl_rule is KlRule.DOUBLING:
            self._doubling = DoublingRule(target=spec.kl_target)
        self.generators = {
            "rollout": torch.Generator(device).manual_seed(config.seed),
            "shuffle": torch.Generator().manual_seed(config.seed),
        }
        self.watch = MissingRewardWatch(
            config.max_missing_reward_share, config.missing_reward_window
        )
        self.objectives = None
        if config.objectives is not None:
            self.objectives = Objectives(config.objectives, num_generations=spec.num_generations)
        self.monitor = Watch(config.monitor)
        self.kl_coef = spec.kl_coef
        self.baseline: float | None = None
        self.num_tokens = 0
        self.num_skipped = 0

    def attach(self, updater: Updater, ptx: PtxMix | None) -> None:
        """Takes on what keeps a state of its own."""
        self._updater = updater
        self._ptx = ptx

    @property
    def epoch(self) -> float:
        """Epochs of the prompts done."""
        return self._prompts.epoch

    def draw(self, num_prompts: int) -> list[Example]:
        """The next prompts."""
        return [self._train[row] for row in self._prompts.next_batch(num_prompts)]

    def steer_kl(self, *, per_completion: float, per_token: float, num_completions: int) -> None:
        """Sets the next step's coefficient.

        Args:
            per_completion: Mean KL to the anchor of a completion, in nats.
            per_token: Likewise of a token.
            num_completions: How many it was measured on.
        """
        if self._doubling is not None:
            self.kl_coef = self._doubling.updated(self.kl_coef, kl=per_token)
            return
        self.kl_coef = self._adaptive.updated(
            self.kl_coef, kl=per_completion, num_samples=num_completions
        )

    def move_baseline(self, rewards: Tensor) -> None:
        """Takes a batch into the moving baseline, where there is one."""
        if self._spec.advantage is AdvantageEstimator.MOVING_BASELINE:
            self.baseline = moving_baseline(self.baseline, rewards, decay=self._spec.baseline_decay)

    def reseed(self, seed: int) -> None:
        """Another course from here on, as after a roll-back."""
        for generator in self.generators.values():
            generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the generators, which checkpoints know about; JSON values."""
        return {
            "prompts": self._prompts.state_dict(),
            "missing": self.watch.state_dict(),
            "monitor": self.monitor.state_dict(),
            "objectives": None if self.objectives is None else self.objectives.state_dict(),
            "ptx": None if self._ptx is None else self._ptx.state_dict(),
            "kl_coef": self.kl_coef,
            "baseline": self.baseline,
            "num_nonfinite": self._updater.num_nonfinite,
            "num_tokens": self.num_tokens,
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`.

        Raises:
            ValueError: If the run was another one: other data, another seed, other objectives.
        """
        for name, mine in (("objectives", self.objectives), ("ptx", self._ptx)):
            theirs = state.get(name)
            if (theirs is None) != (mine is None):
                raise ValueError(
                    f"resume: the checkpoint was saved {'without' if theirs is None else 'with'} "
                    f"{name}; resume with the configuration that it was saved with"
                )
            if mine is not None and theirs is not None:
                mine.load_state_dict(theirs)
        self._prompts.load_state_dict(state["prompts"])
        self.watch.load_state_dict(state["missing"])
        if "monitor" in state:
            self.monitor.load_state_dict(state["monitor"])
        self.kl_coef = float(state["kl_coef"])
        baseline = state.get("baseline")
        self.baseline = None if baseline is None else float(baseline)
        self._updater.num_nonfinite = int(state.get("num_nonfinite", 0))
        self.num_tokens = int(state["num_tokens"])
        self.num_skipped = int(state["num_skipped"])
