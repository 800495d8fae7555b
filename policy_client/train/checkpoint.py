"""Checkpoints that a killed run can trust: whole or absent, exact, and free of pickle.

A checkpoint is a folder `checkpoint-<step>`. It is written under another name, flushed to the disk,
and renamed, so a folder of that name is whole; `latest_checkpoint` checks sizes all the same, for
disks that lie. Tensors are in safetensors files; everything else (schedulers, random states, the
trainer's own state) is JSON, whose floats round-trip exactly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.checkpoint_files import (
    FORMAT,
    STATE_FILE,
    checkpoints,
    is_whole,
)
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.lora import (
    frozen_fingerprint,
    has_adapters,
    learned_state,
    load_learned_state,
)
from rewardsvc.policy_client.train.packed_state import (
    pack,
    random_states,
    set_random_states,
    unpack,
)
from rewardsvc.policy_client.train.sharding import (
    is_sharded,
    load_whole_state,
    part_like,
    whole_state,
)

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
    own: Mapping[str, torch.Tensor] | None = None,
    world: World | None = None,
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
        own: The same, of which each process has its own: such a checkpoint can be loaded by as many
            processes only. None if there are none.
        world: Of this process; all processes must call. The first one writes what they share, and
            each its random states and `own`.
        keep: Checkpoints to keep, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: If a name cannot be a file's name, or a state holds what JSON cannot.
        ConfigError: If this process does not see the first one's folder.
    """
    world = world or World()
    target = directory / f"checkpoint-{step:08d}"
    temporary = directory / f".{target.name}.tmp"

    def begin() -> None:
        if world.is_main:
            directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()

    world.settled(begin)
    # What is divided is put together here, which takes all processes.
    tensors: dict[str, torch.Tensor] = {}
    weights = {name: _weights_of(module) for name, module in modules.items()}
    packed: dict[str, Any] = {
        "frozen": {n: frozen_fingerprint(one) for n, one in modules.items() if has_adapters(one)},
        "optimizers": {name: pack(o.state_dict(), tensors) for name, o in optimizers.items()},
        "schedulers": {name: pack(s.state_dict(), tensors) for name, s in schedulers.items()},
        "generators": {
            name: pack(g.get_state(), tensors) for name, g in (generators or {}).items()
        },
    }

    def write() -> None:
        if not world.is_main:
            _write_own(temporary, world.rank, dict(own or {}))
            return
        for name, state in weights.items():
            file = str(temporary / f"{_checked(name)}.safetensors")
            if has_adapters(modules[name]):
                save_file({k: one.detach().cpu().contiguous() for k, one in state.items()}, file)
            else:
                save_model(_Weights(state), file)  # type: ignore[arg-type]
        packed["random"] = pack(random_states(), tensors)
        packed["extra"] = pack({**(extra or {}), **(own or {})}, tensors)
        save_file(tensors, str(temporary / "tensors.safetensors"))

    def finish() -> None:
        if world.is_main:
            if world.size > 1:
                packed["num_processes"] = world.size
                packed["own"] = None if own is None else sorted(own)
            document = {"format": FORMAT, "step": step, "state": dict(state)}
            _put_in_place(temporary, target, document, packed)
            found = checkpoints(directory)
            newest = found.index(target) + 1
            for path in found[: max(0, newest - keep)] + found[newest:]:
                shutil.rmtree(path)

    world.settled(write)
    world.settled(finish)
    return target


class _Weights:
    """As much of a module as `save_model` asks for."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self._state = state

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._state


def _weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return learned_state(module) if has_adapters(module) else whole_state(module)


def _write_own(directory: Path, rank: int, own: dict[str, torch.Tensor]) -> None:
    """What a process that is not the first has of its own."""
    if not directory.is_dir():
        raise ConfigError(
            f"output_dir: process {rank} does not see {directory.parent}, where the first process "
            "writes; use a folder that all of them share"
        )
    tensors: dict[str, torch.Tensor] = {}
    packed = {"random": pack(random_states(), tensors), "extra": pack(own, tensors)}
    save_file(tensors, str(directory / f"{_own_name(rank)}.safetensors"))
    (directory / f"{_own_name(rank)}.json").write_text(json.dumps(packed), encoding="utf-8")


def _own_name(rank: int) -> str:
    return f"process-{rank}"


def _put_in_place(
    temporary: Path, target: Path, document: dict[str, Any], packed: Mapping[str, Any]
) -> None:
    """Writes the last file, flushes everything, and renames."""
    directory = target.parent
    sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    document = {**document, "files": sizes, **packed}
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


def load_checkpoint(
    path: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    schedulers: Mapping[str, Any],
    generators: Mapping[str, torch.Generator] | None = None,
    world: World | None = None,
) -> LoadedCheckpoint:
    """Fills the given objects in place, and the global random generators.

    Give objects built as for a fresh run. Load right before the loop: whatever draws random numbers
    in between takes them from the resumed run.

    Raises:
        ValueError: If the checkpoint is torn, was saved from other objects than these, or holds
            what other processes had of their own.
    """
    world = world or World()
    if not is_whole(path):
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
            elif is_sharded(module):
                load_whole_state(module, load_file(str(file)))
            else:
                load_model(module, str(file), strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"checkpoint: {file} does not fit the module {name!r}: {error}"
            ) from error
    tensors = load_file(str(path / "tensors.safetensors"))
    for name, optimizer in optimizers.items():
        state = unpack(document["optimizers"][name], tensors)
        optimizer.load_state_dict(_divided(state, optimizer))
    for name, scheduler in schedulers.items():
        scheduler.load_state_dict(unpack(document["schedulers"][name], tensors))
    for name, generator in generators.items():
        generator.set_state(unpack(document["generators"][name], tensors))
    # Checkpoints from before there were such tensors have no such entry.
    extra = unpack(document.get("extra", {"__dict__": []}), tensors)
    random, extra = _own_part(path, document, world, extra)
    if world.is_main:
        random = unpack(document["random"], tensors)
    if random is not None:
        set_random_states(random)
    return LoadedCheckpoint(step=int(document["step"]), state=document["state"], tensors=extra)


def _own_part(
    path: Path, document: Mapping[str, Any], world: World, extra: dict[str, torch.Tensor]
) -> tuple[Mapping[str, Any] | None, dict[str, torch.Tensor]]:
    """Random states of this process, if it is not the first, and all tensors that are for it."""
    own = document.get("own")
    saved_by = int(document.get("num_processes", 1))
    in_middle = own is not None or (saved_by == 1 and bool(extra))
    if in_middle and saved_by != world.size:
        raise ValueError(
            f"checkpoint: {path} is of the middle of a step of {saved_by} processes, and this run "
            f"has {world.size}; resume with {saved_by}, or from a checkpoint of a whole step"
        )
    if world.is_main or world.rank >= saved_by:
        return None, extra
    name = _own_name(world.rank)
    packed = json.loads((path / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(str(path / f"{name}.safetensors"))
    shared = {name: one for name, one in extra.items() if name not in set(own or ())}
    return unpack(packed["random"], tensors), {**shared, **unpack(packed["extra"], tensors)}


def _divided(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A loaded state with moments divided as the optimizer's parameters are."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    moments = {
        number: {
            name: part_like(value, parameters[number]) if torch.is_tensor(value) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}


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
