"""The optimizer and the schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rewardsvc.policy_client.train.config_base import TrainConfigBase
from rewardsvc.policy_client.train.optim import build_optimizer, build_scheduler, lr_multiplier


def make_config(**fields: Any) -> TrainConfigBase:
    return TrainConfigBase(model="m", output_dir=Path("o"), **fields)


def test_norms_and_biases_are_not_decayed() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer([module], make_config(weight_decay=0.1))
    decay_of = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in module.named_parameters():
        assert decay_of[id(parameter)] == (0.1 if name == "0.weight" else 0.0), name


def test_shared_parameters_are_stepped_once_and_frozen_ones_never() -> None:
    shared, frozen = nn.Linear(2, 2, bias=False), nn.Linear(2, 2).requires_grad_(False)
    optimizer = build_optimizer(
        [nn.Sequential(shared), nn.Sequential(shared, frozen)], make_config()
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == 1
    assert parameters[0] is shared.weight


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        build_optimizer([nn.Linear(2, 2).requires_grad_(False)], make_config())


def test_one_step_equals_adamw_by_hand() -> None:
    config = make_config(learning_rate=0.1, weight_decay=0.5, adam_beta1=0.8, adam_beta2=0.9)
    weight = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    optimizer = build_optimizer([module], config)
    weight.grad = torch.tensor([[3.0]], dtype=torch.float64)
    optimizer.step()
    # Bias correction makes the first step's direction grad / |grad|.
    expected = 2.0 * (1 - 0.1 * 0.5) - 0.1 * 3.0 / (3.0 + 1e-8)
    assert weight.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]),
        ("cosine", [0.5, 1.0, 1.0, 0.8681981, 0.55, 0.2318019]),
    ],
)
def test_schedule_follows_its_shape(shape: str, expected: list[float]) -> None:
    config = make_config(
        learning_rate=2.0, lr_scheduler_type=shape, warmup_steps=2, min_lr_ratio=0.1
    )
    optimizer = build_optimizer([nn.Linear(1, 1)], config)
    scheduler = build_scheduler(optimizer, config, total_steps=6)
    seen = []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_no_step_of_the_run_has_a_learning_rate_of_zero(shape: str) -> None:
    for warmup in (0, 1, 5, 9, 10, 20):
        rates = [
            lr_multiplier(s, shape=shape, warmup_steps=warmup, total_steps=10, min_ratio=0.0)
            for s in range(10)
        ]
        assert min(rates) > 0.0
        assert max(rates) <= 1.0
