"""Checkpoints of online runs, of whole steps and of the middle of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rewardsvc.policy_client.train.checkpoint import load_checkpoint, save_checkpoint
from rewardsvc.policy_client.train.checkpoint_files import (
    checkpoint_before,
    checkpoint_to_resume,
    drop_checkpoints_after,
)
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.online.build import Parts
from rewardsvc.policy_client.train.online.config import OnlineConfig
from rewardsvc.policy_client.train.online.experience import Experience
from rewardsvc.policy_client.train.online.run_state import RunState
from rewardsvc.policy_client.train.online.stats import Averages
from rewardsvc.policy_client.train.online.update import UpdateProgress
from rewardsvc.policy_client.train.sharding import as_own_part, own_part

EXPERIENCE, GRADIENT = "experience.", "grad."
"""Prefixes of a checkpoint's own tensors."""


@dataclass(slots=True, kw_only=True)
class InHand:
    """A step in the middle: what was collected, and how far its use has come.

    Attributes:
        experience: The rollout, judged.
        metrics: Of collecting it.
        num_tokens: Tokens that were sampled for it.
        progress: Where the update is; it moves.
    """

    experience: Experience
    metrics: dict[str, float]
    num_tokens: int
    progress: UpdateProgress


class Saver:
    """Writes and reads checkpoints of one run."""

    def __init__(
        self,
        algorithm: str,
        config: OnlineConfig,
        parts: Parts,
        state: RunState,
        *,
        world: World | None = None,
    ) -> None:
        """Takes all that a checkpoint is of. All processes must save and load together."""
        self._algorithm = algorithm
        self._config = config
        self._parts = parts
        self._state = state
        self._world = world or World()

    def document(self, in_hand: InHand | None = None) -> dict[str, Any]:
        """What a checkpoint of now holds beside tensors and random states; JSON values."""
        document = {"algorithm": self._algorithm, **self._state.state_dict(), "in_hand": None}
        if in_hand is not None:
            document["in_hand"] = {
                "metrics": in_hand.metrics,
                "num_tokens": in_hand.num_tokens,
                "progress": in_hand.progress.state_dict(),
            }
            if self._world.size > 1:
                gathered = self._world.gather(in_hand.progress.current.state_dict())
                document["in_hand"]["current_of_processes"] = gathered
        return document

    def save(self, step: int, document: dict[str, Any], in_hand: InHand | None = None) -> None:
        """Writes a checkpoint.

        Args:
            step: Whole steps done.
            document: From `document`, of now or of before the step that has failed.
            in_hand: The step in the middle, if the document has one.
        """
        extra: dict[str, Tensor] = {}
        own: dict[str, Tensor] | None = None
        if in_hand is not None:
            tensors = in_hand.experience.to_tensors()
            extra = {EXPERIENCE + name: tensor for name, tensor in tensors.items()}
            own = {
                GRADIENT + name: own_part(parameter.grad)
                for name, parameter in self._parameters().items()
                if parameter.grad is not None
            }
        save_checkpoint(
            self._config.output_dir,
            step,
            **self._objects(),
            state=document,
            extra=extra,
            own=own,
            world=self._world,
            keep=self._config.save_total_limit,
        )

    def resume(self) -> tuple[int, InHand | None]:
        """Loads what the configuration says to resume from.

        Returns:
            `(steps, in_hand)`: whole steps done, and the step in the middle if there is one.

        Raises:
            ValueError: If the checkpoint is another run's.
        """
        path = checkpoint_to_resume(self._config.output_dir, self._config.resume, self._world)
        if path is None:
            return 0, None
        loaded = load_checkpoint(path, **self._objects(), world=self._world)
        state = loaded.state
        if state["algorithm"] != self._algorithm or loaded.step > self._config.max_steps:
            raise ValueError(
                f"resume: {path} has {loaded.step} steps of {state['algorithm']}, and this run is "
                f"{self._config.max_steps} steps of {self._algorithm}; resume with the "
                "configuration that it was saved with, or raise max_steps"
            )
        self._state.load_state_dict(state)
        saved = state.get("in_hand")
        return loaded.step, None if saved is None else self._in_hand(saved, loaded.tensors)

    def go_back(self, before: int) -> int | None:
        """Loads the newest whole step before `before`, and deletes what was saved after it.

        A checkpoint of the middle of a step has weights that are past its number, and will not do.

        Returns:
            That step; None if there is no such checkpoint, and nothing has changed.
        """
        path = checkpoint_before(
            self._config.output_dir, before, lambda state: state.get("in_hand") is None, self._world
        )
        if path is None:
            return None
        loaded = load_checkpoint(path, **self._objects(), world=self._world)
        self._state.load_state_dict(loaded.state)
        if self._world.is_main:
            drop_checkpoints_after(self._config.output_dir, loaded.step)
        self._world.barrier()
        for module in self._parts.modules.values():
            module.zero_grad(set_to_none=True)
        return loaded.step

    def _in_hand(self, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> InHand:
        kept = {
            name.removeprefix(EXPERIENCE): tensor
            for name, tensor in tensors.items()
            if name.startswith(EXPERIENCE)
        }
        for name, parameter in self._parameters().items():
            gradient = tensors.get(GRADIENT + name)
            if gradient is not None:
                parameter.grad = as_own_part(gradient.to(parameter.device), parameter)
        progress = UpdateProgress.from_state(saved["progress"])
        if "current_of_processes" in saved:
            current = saved["current_of_processes"][self._world.rank]
            progress.current = Averages.from_state(current)
        return InHand(
            experience=Experience.from_tensors(kept, self._parts.policy.device),
            metrics=dict(saved["metrics"]),
            num_tokens=int(saved["num_tokens"]),
            progress=progress,
        )

    def _objects(self) -> dict[str, Any]:
        return {
            "modules": self._parts.modules,
            "optimizers": self._parts.optimizers,
            "schedulers": self._parts.schedulers,
            "generators": self._state.generators,
        }

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{module}.{name}": parameter
            for module, one in self._parts.modules.items()
            for name, parameter in one.named_parameters()
        }
