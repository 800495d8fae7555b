"""Checkpoints that a killed run can trust: whole or absent, exact, and free of pickle.

A checkpoint is a folder `checkpoint-<step>`. It is written under another name, flushed to the disk,
and renamed, so a folder of that name is whole; `latest_checkpoint` checks sizes all the same, for
disks that lie. Tensors are in safetensors files; everything else (schedulers, random states, the
trainer's own state) is JSON, whose floats round-trip exactly.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.lora import (
    frozen_fingerprint,
    has_adapters,
    learned_state,
    load_learned_state,
)

STATE_FILE = "state.json"
FORMAT = 1

_FOLDER = re.compile(r"checkpoint-(\d+)")
_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """What `load_checkpoint` gives back beside the objects that it fills.

    Attributes:
        step: Optimizer steps done.
        state: The trainer's own state, as it was given to `save_checkpoint`.
        tensors: The trainer's own tensors, likewise.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def save_checkpoint(
    directory: Path,
    step: int,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    schedulers: Mapping[str, Any],
    state: Mapping[str, Any],
    generators: Mapping[str, torch.Generator] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    keep: int,
) -> Path:
    """Writes `directory/checkpoint-<step>` in one atomic step and removes the oldest ones.

    Checkpoints of later steps are removed too: an earlier life of the run left them, and this one
    has gone back behind them. The states of torch's, Python's and numpy's global random generators
    are saved too.

    Args:
        directory: Created if it does not exist.
        step: Optimizer steps done.
        modules: By name; parameters and persistent buffers. Tied weights are stored once. Of a
            module with adapters only what it has learned is stored, and what tells its frozen
            weights from others.
        optimizers: By name.
        schedulers: By name; anything with `state_dict` and `load_state_dict`.
        state: JSON values only: counters, the sampler's state, a KL coefficient.
        generators: Random generators of the trainer's own.
        extra: Tensors of the trainer's own, such as a rollout in the middle of its use.
        keep: Checkpoints to keep, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: If a name cannot be a file's name, or a state holds what JSON cannot.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"checkpoint-{step:08d}"
    temporary = directory / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()

    frozen: dict[str, str] = {}
    for name, module in modules.items():
        file = str(temporary / f"{_checked(name)}.safetensors")
        if has_adapters(module):
            frozen[name] = frozen_fingerprint(module)
            learned = learned_state(module)
            save_file({key: one.detach().cpu().contiguous() for key, one in learned.items()}, file)
        else:
            save_model(module, file)
    tensors: dict[str, torch.Tensor] = {}
    packed = {
        "frozen": frozen,
        "optimizers": {name: _pack(o.state_dict(), tensors) for name, o in optimizers.items()},
        "schedulers": {name: _pack(s.state_dict(), tensors) for name, s in schedulers.items()},
        "generators": {
            name: _pack(g.get_state(), tensors) for name, g in (generators or {}).items()
        },
        "random": _pack(_random_states(), tensors),
        "extra": _pack(dict(extra or {}), tensors),
    }
    save_file(tensors, str(temporary / "tensors.safetensors"))
    sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    document = {"format": FORMAT, "step": step, "state": dict(state), "files": sizes, **packed}
    (temporary / STATE_FILE).write_text(json.dumps(document), encoding="utf-8")

    for path in temporary.iterdir():
        _fsync(path)
    _fsync(temporary)
    if target.exists():  # saved by an earlier life of the run that got further than its resume
        outdated = directory / f".{target.name}.old"
        shutil.rmtree(outdated, ignore_errors=True)
        target.rename(outdated)
        temporary.rename(target)
        shutil.rmtree(outdated)
    else:
        temporary.rename(target)
    _fsync(directory)
    found = _checkpoints(directory)
    newest = found.index(target) + 1
    for path in found[: max(0, newest - keep)] + found[newest:]:
        shutil.rmtree(path)
    return target


def latest_checkpoint(directory: Path) -> Path | None:
    """The whole checkpoint with the most steps below `directory`, or None if there is none."""
    for path in reversed(_checkpoints(directory)):
        if _is_whole(path):
            return path
    return None


def checkpoint_before(
    directory: Path, step: int, usable: Callable[[Mapping[str, Any]], bool]
) -> Path | None:
    """The whole checkpoint with the most steps, but fewer than `step`; None if there is none.

    Args:
        directory: The run's folder.
        step: The first step that is too late.
        usable: Whether a checkpoint with this `state` will do.
    """
    for path in reversed(_checkpoints(directory)):
        if _steps_of(path) < step and _is_whole(path):
            document = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
            if usable(document["state"]):
                return path
    return None


def drop_checkpoints_after(directory: Path, step: int) -> None:
    """Deletes checkpoints of later steps than `step`."""
    for path in _checkpoints(directory):
        if _steps_of(path) > step:
            shutil.rmtree(path)


def checkpoint_to_resume(output_dir: Path, resume: bool | Path) -> Path | None:
    """Where a run with this `resume` goes on; None if it starts from the beginning.

    Raises:
        ConfigError: If it is to start from the beginning in a folder that holds another run's
            checkpoint: killed before its own first one, it would later resume that.
    """
    newest = latest_checkpoint(output_dir)
    if resume is False and newest is not None:
        raise ConfigError(
            f"output_dir: {newest.parent} holds {newest.name} of another run; set resume: true "
            "to go on from it, or choose another folder"
        )
    return newest if isinstance(resume, bool) else resume


def load_checkpoint(
    path: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    schedulers: Mapping[str, Any],
    generators: Mapping[str, torch.Generator] | None = None,
) -> LoadedCheckpoint:
    """Fills the given objects in place, and the global random generators.

    Give objects built as for a fresh run. Load right before the loop: whatever draws random numbers
    in between takes them from the resumed run.

    Raises:
        ValueError: If the checkpoint is torn, or was saved from other objects than these.
    """
    if not _is_whole(path):
        raise ValueError(f"checkpoint: {path} is torn or not a checkpoint; resume from another one")
    document = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    generators = generators or {}
    for kind, wanted in (
        ("optimizers", optimizers),
        ("schedulers", schedulers),
        ("generators", generators),
    ):
        if set(wanted) != set(document[kind]):
            raise ValueError(
                f"checkpoint: {path} has the {kind} {sorted(document[kind])}, and this run has "
                f"{sorted(wanted)}; resume with the configuration that it was saved with"
            )
    for name, module in modules.items():
        file = path / f"{_checked(name)}.safetensors"
        if not file.exists():
            raise ValueError(f"checkpoint: {path} has no module {name!r}")
        if has_adapters(module) and name in document.get("frozen", {}):
            now = frozen_fingerprint(module)
            if now != document["frozen"][name]:
                raise ValueError(
                    f"checkpoint: {path} was saved of adapters on another model than this run's "
                    f"{name!r}; resume with the model that it was started with"
                )
        try:
            if has_adapters(module):
                load_learned_state(module, load_file(str(file)))
            else:
                load_model(module, str(file), strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"checkpoint: {file} does not fit the module {name!r}: {error}"
            ) from error
    tensors = load_file(str(path / "tensors.safetensors"))
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(_unpack(document["optimizers"][name], tensors))
    for name, scheduler in schedulers.items():
        scheduler.load_state_dict(_unpack(document["schedulers"][name], tensors))
    for name, generator in generators.items():
        generator.set_state(_unpack(document["generators"][name], tensors))
    _set_random_states(_unpack(document["random"], tensors))
    return LoadedCheckpoint(
        step=int(document["step"]),
        state=document["state"],
        # Checkpoints from before there were such tensors have no such entry.
        tensors=_unpack(document.get("extra", {"__dict__": []}), tensors),
    )


def _checkpoints(directory: Path) -> list[Path]:
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


def _is_whole(path: Path) -> bool:
    try:
        document = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        return document["format"] == FORMAT and all(
            (path / name).stat().st_size == size for name, size in document["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name == "tensors":
        raise ValueError(f"modules: {name!r} cannot name a file; use letters, digits and _")
    return name


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; its tensors move into `tensors`. JSON lacks tuples and keys of other types
    than text, so these, arrays and tensors become an object with one key that says what it is.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": key}
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if isinstance(value, Mapping):
        return {"__dict__": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    raise ValueError(f"a checkpoint cannot hold {value!r} of type {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__array__" in value:
        return np.array(value["__array__"], dtype=value["dtype"])
    if "__tuple__" in value:
        return tuple(_unpack(item, tensors) for item in value["__tuple__"])
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value["__dict__"]}
