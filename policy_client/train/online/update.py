"""From experience to new weights: epochs, minibatches, micro-batches, optimiser steps.

An update can be paused after any micro-batch and go on in another process: `UpdateProgress` says
where it is, and gradients gathered so far are part of a checkpoint. Everything between two pauses
is a function of what a checkpoint holds, so that a resumed update is the same one bit for bit.

Legend: N completions, T tokens of the longest one; n completions of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rewardsvc.policy_client.algorithms.aggregation import token_weights
from rewardsvc.policy_client.algorithms.spec import AlgorithmSpec, KlAnchor
from rewardsvc.policy_client.algorithms.value_loss import explained_variance
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.experience import Experience
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.loss_terms import (
    LOSS,
    NUM_HIGH,
    NUM_LOW,
    POLICY_LOSS,
    PolicyTerms,
    value_loss,
)
from rewardsvc.policy_client.train.online.ptx import PtxMix
from rewardsvc.policy_client.train.online.recompute import recomputed
from rewardsvc.policy_client.train.online.stats import Averages
from rewardsvc.policy_client.train.sharding import begin_pass, is_sharded, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateParams:
    """Numbers that the update depends on; see the fields of the same names in `OnlineConfig`."""

    max_tokens_per_microbatch: int
    max_grad_norm: float
    max_new_tokens: int
    value_clip: float | None
    max_nonfinite_updates: int = 10
    activation_checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What is learned.

    Attributes:
        forward: The policy.
        optimizer: Of the policy.
        critic: None where the algorithm has none.
        critic_optimizer: Of the critic.
        ptx: Ordinary text to mix in; None for none.
    """

    forward: PolicyForward
    optimizer: torch.optim.Optimizer
    critic: Critic | None = None
    critic_optimizer: torch.optim.Optimizer | None = None
    ptx: PtxMix | None = None


@dataclass(slots=True, kw_only=True)
class UpdateProgress:
    """Where an update is.

    Attributes:
        epoch: Pass over the rollout, from 0.
        order: Rows in this pass's order; empty if it is not drawn yet.
        minibatch: Minibatch of this pass, from 0.
        micro: Micro-batches of it whose gradients are gathered, in each process.
        done: Metrics of finished minibatches, of all processes.
        current: Metrics of the minibatch at hand, of this process.
    """

    epoch: int = 0
    order: list[int]
    minibatch: int = 0
    micro: int = 0
    done: Averages
    current: Averages

    @classmethod
    def start(cls) -> UpdateProgress:
        """The beginning."""
        return cls(order=[], done=Averages(), current=Averages())

    def state_dict(self) -> dict[str, Any]:
        """JSON values, for `from_state`."""
        return {
            "epoch": self.epoch,
            "order": list(self.order),
            "minibatch": self.minibatch,
            "micro": self.micro,
            "done": self.done.state_dict(),
            "current": self.current.state_dict(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> UpdateProgress:
        """What `state_dict` was called on."""
        return cls(
            epoch=int(state["epoch"]),
            order=list(state["order"]),
            minibatch=int(state["minibatch"]),
            micro=int(state["micro"]),
            done=Averages.from_state(state["done"]),
            current=Averages.from_state(state["current"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """How a micro-batch counts.

    Attributes:
        weights: float [n, T], of each token in the policy's loss.
        num_tokens: Tokens that the value loss is a mean over.
        kl_coef: See `Updater.update`.
        first_update: Whether the policy is still the one that made the rollout.
        counts: Whether it counts at all.
    """

    weights: Tensor
    num_tokens: int
    kl_coef: float
    first_update: bool = False
    counts: bool = True


Pause = Callable[[UpdateProgress], None]
"""Called between micro-batches; may save a checkpoint, and may raise to stop."""


class Updater:
    """Applies the loss columns of a spec."""

    def __init__(
        self,
        learner: Learner,
        spec: AlgorithmSpec,
        params: UpdateParams,
        *,
        world: World | None = None,
    ) -> None:
        """Takes what is learned, and how, and this process's world."""
        self._world = world or World()
        self._learner = learner
        self._spec = spec
        self._params = params
        self._terms = PolicyTerms(forward=learner.forward, spec=spec)
        self.num_nonfinite = 0
        """Optimiser steps in a row whose gradient was not finite; part of a checkpoint."""

    def update(
        self,
        experience: Experience,
        *,
        kl_coef: float,
        generator: torch.Generator,
        progress: UpdateProgress | None = None,
        pause: Pause | None = None,
    ) -> dict[str, float]:
        """One step's optimizer steps.

        Args:
            experience: What to learn from.
            kl_coef: Weight of the KL penalty, used here if its place is the loss.
            generator: On the CPU; shuffles minibatches, and is not used if there is only one.
            progress: Where to go on; None for the beginning. Gradients, weights and `generator`
                must be as they were.
            pause: Called after every micro-batch but the last.

        Returns:
            Metrics of the update. Values of ratios and losses are those before each optimizer step.

        Raises:
            FloatingPointError: If too many gradients in a row are not finite.
        """
        at = progress or UpdateProgress.start()
        pause = pause or (lambda _: None)
        spec, num_rows = self._spec, len(experience.sequences.prompts)
        while at.epoch < spec.num_epochs:
            if not at.order:
                at.order = self._drawn_order(num_rows, generator)
            parts = torch.tensor(at.order).tensor_split(spec.num_minibatches)
            while at.minibatch < len(parts):
                self._minibatch(experience, parts[at.minibatch].tolist(), kl_coef, at, pause)
                at.minibatch, at.micro, at.current = at.minibatch + 1, 0, Averages()
                if at.minibatch < len(parts):
                    pause(at)
            at.epoch, at.minibatch, at.order = at.epoch + 1, 0, []
            if at.epoch < spec.num_epochs:
                pause(at)
        metrics = at.done.result()
        if experience.returns is not None and experience.old_values is not None:
            metrics["critic/vf_explained_var"] = explained_variance(
                experience.old_values, experience.returns, experience.mask
            )
        if spec.kl_anchor is KlAnchor.OLD_POLICY:
            max_tokens = self._params.max_tokens_per_microbatch
            metrics["kl_old"] = self._terms.kl_from_old(experience, max_tokens)
        return metrics

    def _drawn_order(self, num_rows: int, generator: torch.Generator) -> list[int]:
        if self._spec.num_minibatches == 1:
            return list(range(num_rows))
        order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
        return order

    def _minibatch(
        self,
        experience: Experience,
        rows: Sequence[int],
        kl_coef: float,
        at: UpdateProgress,
        pause: Pause,
    ) -> None:
        """One optimizer step, on the sum of the losses of micro-batches."""
        mask_NT = experience.mask[rows]
        num_tokens = int(mask_NT.sum())
        if num_tokens == 0:
            at.done.count("num_skipped_updates")
            return
        weights_NT = experience.advantages.new_zeros(experience.mask.shape)
        weights_NT[rows] = token_weights(
            mask_NT,
            self._spec.aggregation,
            norm_length=self._params.max_new_tokens,
            groups_N=experience.groups[rows],
            dtype=weights_NT.dtype,
        )
        first_update = at.epoch == 0 and at.minibatch == 0
        used_N = self._learned_from(experience, rows, kl_coef)
        active = [row for row, used in zip(rows, used_N.tolist(), strict=True) if used]
        max_tokens = self._params.max_tokens_per_microbatch
        hands = experience.sequences.dealt(max_tokens, self._world, active)
        mine, num_rounds = hands[self._world.rank], max(map(len, hands))
        for number in range(at.micro, num_rounds):
            if number < len(mine):
                part = mine[number]
                terms = _Terms(
                    weights=weights_NT[part],
                    num_tokens=num_tokens,
                    kl_coef=kl_coef,
                    first_update=first_update,
                )
                self._backward(experience, part, terms, at.current)
            elif is_sharded(self._learner.forward.model):
                # Weights that are divided come together for all processes at once: this one runs
                # with the others, on anything, and learns nothing from it.
                terms = _Terms(
                    weights=torch.zeros_like(weights_NT[:1]),
                    num_tokens=num_tokens,
                    kl_coef=kl_coef,
                    counts=False,
                )
                self._backward(experience, active[:1], terms, Averages())
            at.micro = number + 1
            if at.micro < num_rounds:
                pause(at)
        if self._learner.ptx is not None:
            at.current.add("ptx_loss", *self._learner.ptx.backward())
        self._finish(at, num_tokens)

    def _backward(
        self, experience: Experience, part: list[int], terms: _Terms, averages: Averages
    ) -> None:
        """Adds a micro-batch's gradient, and its metrics to `averages`."""
        learner = self._learner
        begin_pass(learner.forward.model)
        with self._activations(learner.forward.model):
            loss = self._terms.loss(
                experience,
                part,
                terms.weights,
                kl_coef=terms.kl_coef,
                first_update=terms.first_update,
                averages=averages,
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if learner.critic is not None:
            begin_pass(learner.critic)
            with self._activations(learner.critic):
                clip = self._params.value_clip
                of_values = value_loss(
                    learner.critic, experience, part, clip=clip, averages=averages
                )
            share = float(terms.counts)
            (share * of_values / terms.num_tokens).backward()  # type: ignore[no-untyped-call]

    def _activations(self, module: nn.Module) -> AbstractContextManager[None]:
        return recomputed(module) if self._params.activation_checkpointing else nullcontext()

    def _learned_from(self, experience: Experience, rows: Sequence[int], kl_coef: float) -> Tensor:
        """bool [rows]: which of these need a forward pass.

        Without an advantage the policy's loss has no gradient: where no other term has one either,
        a group of equal rewards costs nothing. It still counts in the weights of the others.
        """
        mask_NT = experience.mask[rows]
        critic = self._learner.critic is not None
        if critic or self._terms.has_gradient_without_advantage(experience, kl_coef):
            return mask_NT.any(1)
        return (mask_NT & (experience.advantages[rows] != 0)).any(1)

    def _finish(self, at: UpdateProgress, num_tokens: int) -> None:
        """The optimizer steps. Of a minibatch whose gradient is dropped nothing is reported."""
        learner = self._learner
        current = Averages.total(self._world.gather(at.current.state_dict()))
        finite = self._step(learner.forward.model, learner.optimizer, "grad_norm", current)
        if learner.critic is not None and learner.critic_optimizer is not None:
            name = "critic/grad_norm"
            finite &= self._step(learner.critic, learner.critic_optimizer, name, current)
        if not finite:
            at.done.count("num_skipped_updates")
            self.num_nonfinite += 1
            if self.num_nonfinite > self._params.max_nonfinite_updates:
                raise FloatingPointError(
                    f"{self.num_nonfinite} gradients in a row are not finite, and "
                    f"max_nonfinite_updates is {self._params.max_nonfinite_updates}; lower "
                    "learning_rate, or look for the layer that overflows"
                )
            return
        self.num_nonfinite = 0
        low = current.take_count(NUM_LOW) / num_tokens
        high = current.take_count(NUM_HIGH) / num_tokens
        current.add("loss", current.take_count(LOSS), 1.0)
        current.add("policy_loss", current.take_count(POLICY_LOSS), 1.0)
        current.add("clip_ratio/low_mean", low, 1.0)
        current.add("clip_ratio/high_mean", high, 1.0)
        current.add("clip_ratio/region_mean", low + high, 1.0)
        current.low("clip_ratio/low_min", low)
        current.high("clip_ratio/high_max", high)
        at.done.merge(current)

    def _step(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, name: str, averages: Averages
    ) -> bool:
        """Clips the gradient and steps; a gradient that is not finite is dropped: False."""
        self._world.sum_gradients(module.parameters())
        norm = whole(nn.utils.clip_grad_norm_(module.parameters(), self._params.max_grad_norm))
        finite = bool(norm.isfinite())
        if finite:
            optimizer.step()
            averages.add(name, float(norm), 1.0)
        optimizer.zero_grad(set_to_none=True)
        return finite
