"""Checkpoints of online runs, of whole steps and of the middle of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rewardsvc.policy_client.train.checkpoint import (
    checkpoint_before,
    checkpoint_to_resume,
    drop_checkpoints_after,
    load_checkpoint,
    save_checkpoint,
)
from rewardsvc.policy_client.train.online.build import Parts
from rewardsvc.policy_client.train.online.config import OnlineConfig
from rewardsvc.policy_client.train.online.experience import Experience
from rewardsvc.policy_client.train.online.run_state import RunState
from rewardsvc.policy_client.train.online.update import UpdateProgress

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

    def __init__(self, algorithm: str, config: OnlineConfig, parts: Parts, state: RunState) -> None:
        """Takes all that a checkpoint is of."""
        self._algorithm = algorithm
        self._config = config
        self._parts = parts
        self._state = state

    def document(self, in_hand: InHand | None = None) -> dict[str, Any]:
        """What a checkpoint of now holds beside tensors and random states; JSON values."""
        document = {"algorithm": self._algorithm, **self._state.state_dict(), "in_hand": None}
        if in_hand is not None:
            document["in_hand"] = {
                "metrics": in_hand.metrics,
                "num_tokens": in_hand.num_tokens,
                "progress": in_hand.progress.state_dict(),
            }
        return document

    def save(self, step: int, document: dict[str, Any], in_hand: InHand | None = None) -> None:
        """Writes a checkpoint.

        Args:
            step: Whole steps done.
            document: From `document`, of now or of before the step that has failed.
            in_hand: The step in the middle, if the document has one.
        """
        extra: dict[str, Tensor] = {}
        if in_hand is not None:
            tensors = in_hand.experience.to_tensors()
            extra = {EXPERIENCE + name: tensor for name, tensor in tensors.items()}
            for name, parameter in self._parameters().items():
                if parameter.grad is not None:
                    extra[GRADIENT + name] = parameter.grad
        save_checkpoint(
            self._config.output_dir,
            step,
            **self._objects(),
            state=document,
            extra=extra,
            keep=self._config.save_total_limit,
        )

    def resume(self) -> tuple[int, InHand | None]:
        """Loads what the configuration says to resume from.

        Returns:
            `(steps, in_hand)`: whole steps done, and the step in the middle if there is one.

        Raises:
            ValueError: If the checkpoint is another run's.
        """
        path = checkpoint_to_resume(self._config.output_dir, self._config.resume)
        if path is None:
            return 0, None
        loaded = load_checkpoint(path, **self._objects())
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
            self._config.output_dir, before, lambda state: state.get("in_hand") is None
        )
        if path is None:
            return None
        loaded = load_checkpoint(path, **self._objects())
        self._state.load_state_dict(loaded.state)
        drop_checkpoints_after(self._config.output_dir, loaded.step)
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
                parameter.grad = gradient.to(parameter.device)
        return InHand(
            experience=Experience.from_tensors(kept, self._parts.policy.device),
            metrics=dict(saved["metrics"]),
            num_tokens=int(saved["num_tokens"]),
            progress=UpdateProgress.from_state(saved["progress"]),
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
