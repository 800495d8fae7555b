"""The optimizer and the learning rate's schedule, the same for every trainer."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from rewardsvc.policy_client.train.config_base import TrainConfigBase


def build_optimizer(modules: Iterable[nn.Module], config: TrainConfigBase) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of all `modules`.

    A parameter that two modules share is stepped once. Vectors and scalars (norms, biases) are not
    decayed. The fused implementation is used where the device has one: it is one pass over memory
    and not a dozen.

    Args:
        modules: For instance a policy and a critic.
        config: Gives learning rate, betas, epsilon and decay.

    Raises:
        ValueError: If nothing is trainable.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                (decayed if parameter.ndim >= 2 else plain).append(parameter)
    if not seen:
        raise ValueError("modules: no parameter requires a gradient; unfreeze one")
    devices = {parameter.device.type for parameter in (*decayed, *plain)}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=devices <= {"cpu", "cuda"},
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfigBase, total_steps: int
) -> LambdaLR:
    """A linear warm-up, then constant, linear or cosine down to `min_lr_ratio`.

    Call `.step()` after every optimizer step. Unlike the schedules of transformers, the first step
    of a warm-up has a learning rate above zero, so that no step is wasted.

    Args:
        optimizer: Whose learning rates are scaled.
        config: Gives shape, warm-up and floor.
        total_steps: Optimizer steps in the whole run, at least 1.
    """
    multiplier = functools.partial(
        lr_multiplier,
        shape=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        total_steps=total_steps,
        min_ratio=config.min_lr_ratio,
    )
    return LambdaLR(optimizer, lambda step: multiplier(step))


def lr_multiplier(
    step: int, *, shape: str, warmup_steps: int, total_steps: int, min_ratio: float
) -> float:
    """The share of the peak learning rate that optimizer step `step` (from 0) is taken with.

    Args:
        step: From 0.
        shape: "constant", "linear" or "cosine".
        warmup_steps: Step i of these has (i + 1) / warmup_steps of the peak.
        total_steps: The decay reaches `min_ratio` right after the last of these.
        min_ratio: The floor, in [0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if shape == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    left = 1.0 - done if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return min_ratio + (1.0 - min_ratio) * left
