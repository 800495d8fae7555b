"""Base of the scorers' configuration models.

Every scorer type has a pydantic model with a literal `type`. Models check values and import nothing
heavy, so that a configuration can be checked on a machine without torch. A scorer that is built on
others names them; `rewardsvc.config` gives scorers written in place a name of their own first.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class ScorerConfigBase(BaseModel):
    """Base of every scorer's section in the configuration file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str

    def children(self) -> tuple[str, ...]:
        """Names of the scorers that this one is built on."""
        return ()

    def worker_devices(self) -> tuple[str, ...]:
        """Devices of the worker processes that serve it, one each; none: this process does."""
        return ()

    def on_worker(self, device: str) -> dict[str, Any]:
        """The section that a worker process loads on its device, as JSON values."""
        raise NotImplementedError(f"type {self.type!r} is not served by worker processes")

    def runs_code_of_the_config(self) -> bool:
        """Whether loading this section runs code that the section chooses (a user's module, remote
        code of a model). Such a section is accepted from the operator's file, not over the network.
        """
        return False
