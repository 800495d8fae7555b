"""What a scorer is given when it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewardsvc.engine.host import EngineHost
    from rewardsvc.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEnv:
    """The surroundings of one scorer.

    Attributes:
        name: The scorer's name in the configuration.
        base_dir: Relative paths in the configuration start here: the folder of the file.
        child: Gives a scorer by name, as a handle that stays valid when that scorer is reloaded.
        engine: Devices, their forward threads and batchers; shared by all scorers of the process.
    """

    name: str
    base_dir: Path
    child: Callable[[str], Scorer]
    engine: EngineHost

    def path(self, value: str) -> str:
        """`value` as an absolute path if it exists below `base_dir` or is written as a path.

        Anything else (a hub id such as "org/model") is returned unchanged.
        """
        candidate = self.base_dir / Path(value).expanduser()
        if candidate.exists() or value.startswith((".", "/", "~")):
            return str(candidate.resolve())
        return value
