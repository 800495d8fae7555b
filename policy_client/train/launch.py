"""How a process joins the others of its run, and what its launcher has told it."""

from __future__ import annotations

import atexit
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.config_base import TrainConfigBase
from rewardsvc.policy_client.train.distributed import ProcessWorld, World

_SETTLE_S = 0.1


def join_world(config: TrainConfigBase) -> World:
    """This process's world: the process group that there is, or that its launcher asks for.

    `accelerate launch` and `torchrun` ask by setting RANK and WORLD_SIZE. Leaves the group when the
    interpreter exits; `leave_world` does so earlier.

    Args:
        config: How long a process waits for the others, and whether it computes on the CPU; not
            used if there is a group already.

    Raises:
        ConfigError: If accelerate is missing.
    """
    if not dist.is_available():
        return World()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return World()
        _join(config.collective_timeout_s, cpu=config.device == "cpu")
    return ProcessWorld() if dist.get_world_size() > 1 else World()


def check_patience(world: World, collective_timeout_s: float, max_service_outage_s: float) -> None:
    """Whether processes wait for each other for longer than one of them may wait for a service.

    Raises:
        ConfigError: If not.
    """
    if world.size > 1 and collective_timeout_s <= max_service_outage_s:
        raise ConfigError(
            f"collective_timeout_s: {collective_timeout_s:g} must be above max_service_outage_s, "
            f"{max_service_outage_s:g}: the others wait while one process waits for a service"
        )


def current_world() -> World:
    """The world that `join_world` has joined; alone without one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessWorld()
    return World()


def uses_fsdp(asked: bool | None, world: World) -> bool:
    """Whether weights are divided: as the configuration says, or else as `accelerate launch` does.

    Raises:
        ConfigError: If there is one process only, or accelerate was told another kind of sharding.
    """
    told = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    version = os.environ.get("FSDP_VERSION", "1")
    if asked is None and told and version != "2":
        raise ConfigError(
            f"FSDP_VERSION: accelerate was told FSDP {version}; this trainer has --fsdp_version 2"
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ConfigError("ACCELERATE_USE_DEEPSPEED: not supported; use FSDP2 (--use_fsdp)")
    wanted = told and world.size > 1 if asked is None else asked
    if wanted and world.size == 1:
        raise ConfigError(
            "fsdp: true, and this run is one process; start several with `torchrun` or "
            "`accelerate launch`, or set fsdp: false"
        )
    return wanted


def leave_world() -> None:
    """Leaves the process group, if there is one. Exiting without may abort the interpreter."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        # Threads of gloo may live on, since FSDP2's caches keep the group. One that is about to let
        # go of a tensor needs the interpreter: if that is ending, the process aborts.
        time.sleep(_SETTLE_S)


def _join(timeout_s: float, *, cpu: bool) -> None:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ConfigError(
            "WORLD_SIZE: this is one of several processes, and accelerate is not installed; "
            "`pip install 'rewardsvc[train]'`, or start one process"
        ) from error
    cpu = cpu or not torch.cuda.is_available()
    PartialState(cpu=cpu, timeout=timedelta(seconds=timeout_s))
    atexit.register(leave_world)
