"""Which checkpoints there are in a run's folder, and which of them are whole."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.distributed import World

STATE_FILE = "state.json"
FORMAT = 1

_FOLDER = re.compile(r"checkpoint-(\d+)")


def latest_checkpoint(directory: Path) -> Path | None:
    """The whole checkpoint with the most steps below `directory`, or None if there is none."""
    for path in reversed(checkpoints(directory)):
        if is_whole(path):
            return path
    return None


def checkpoint_before(
    directory: Path,
    step: int,
    usable: Callable[[Mapping[str, Any]], bool],
    world: World | None = None,
) -> Path | None:
    """The whole checkpoint with the most steps, but fewer than `step`; None if there is none.

    Args:
        directory: The run's folder.
        step: The first step that is too late.
        usable: Whether a checkpoint with this `state` will do.
        world: Of this process; the first one's answer is that of all.
    """

    def find() -> Path | None:
        for path in reversed(checkpoints(directory)):
            if _steps_of(path) < step and is_whole(path):
                document = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
                if usable(document["state"]):
                    return path
        return None

    return _as_first(find, world or World())


def _as_first(find: Callable[[], Path | None], world: World) -> Path | None:
    """What the first process finds."""
    found = world.settled(lambda: find() if world.is_main else None, ConfigError)
    name = world.from_main(None if found is None else str(found))
    return None if name is None else Path(name)


def drop_checkpoints_after(directory: Path, step: int) -> None:
    """Deletes checkpoints of later steps than `step`."""
    for path in checkpoints(directory):
        if _steps_of(path) > step:
            shutil.rmtree(path)


def checkpoint_to_resume(
    output_dir: Path, resume: bool | Path, world: World | None = None
) -> Path | None:
    """Where a run with this `resume` goes on; None if it starts from the beginning.

    The first process's answer is that of all.

    Raises:
        ConfigError: If it is to start from the beginning in a folder that holds another run's
            checkpoint: killed before its own first one, it would later resume that.
    """

    def find() -> Path | None:
        newest = latest_checkpoint(output_dir)
        if resume is False and newest is not None:
            raise ConfigError(
                f"output_dir: {newest.parent} holds {newest.name} of another run; set resume: true "
                "to go on from it, or choose another folder"
            )
        return newest if isinstance(resume, bool) else resume

    return _as_first(find, world or World())


def checkpoints(directory: Path) -> list[Path]:
    """Folders named like checkpoints, fewest steps first."""
    if not directory.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in directory.iterdir()
        if path.is_dir() and (match := _FOLDER.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def _steps_of(path: Path) -> int:
    match = _FOLDER.fullmatch(path.name)
    assert match is not None  # `_checkpoints` gives no other
    return int(match[1])


def is_whole(path: Path) -> bool:
    try:
        document = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        return document["format"] == FORMAT and all(
            (path / name).stat().st_size == size for name, size in document["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
