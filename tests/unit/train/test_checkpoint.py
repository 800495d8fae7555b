"""Checkpoints are whole or absent, exact, and free of pickle."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rewardsvc.policy_client.train import checkpoint as module_under_test
from rewardsvc.policy_client.train.checkpoint import load_checkpoint, save_checkpoint
from rewardsvc.policy_client.train.checkpoint_files import latest_checkpoint
from rewardsvc.policy_client.train.config_base import TrainConfigBase
from rewardsvc.policy_client.train.optim import build_optimizer, build_scheduler


class Trainer:
    """A toy trainer that uses every source of randomness that a checkpoint promises to keep."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        config = TrainConfigBase(
            model="m", output_dir=Path("o"), learning_rate=0.05, warmup_steps=2, weight_decay=0.1
        )
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.Dropout(0.3), nn.LayerNorm(8), nn.Linear(8, 4)
        )
        self.model[3].weight = nn.Parameter(self.model[3].weight.detach().clone())
        self.model.to(dtype)
        self.dtype = dtype
        self.optimizer = build_optimizer([self.model], config)
        self.scheduler = build_scheduler(self.optimizer, config, 6)
        self.generator = torch.Generator().manual_seed(5)

    def step(self) -> None:
        x = torch.randn(3, 4, generator=self.generator).to(self.dtype)
        noise = random.random() + float(np.random.rand())
        (self.model(x).square().mean() * noise).backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def parts(self) -> dict[str, dict[str, object]]:
        return {
            "modules": {"policy": self.model},
            "optimizers": {"policy": self.optimizer},
            "schedulers": {"policy": self.scheduler},
            "generators": {"rollout": self.generator},
        }

    def save(self, directory: Path, step: int, keep: int = 2) -> Path:
        return save_checkpoint(directory, step, **self.parts(), state={"n": step}, keep=keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    straight = Trainer(dtype)
    for _ in range(6):
        straight.step()
    first = Trainer(dtype)
    for _ in range(3):
        first.step()
    first.save(tmp_path, 3)
    resumed = Trainer(dtype)
    loaded = load_checkpoint(tmp_path / "checkpoint-00000003", **resumed.parts())
    assert (loaded.step, loaded.state) == (3, {"n": 3})
    for _ in range(3):
        resumed.step()
    for mine, other in zip(
        resumed.model.state_dict().values(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other)
    mine, other = resumed.optimizer.state_dict(), straight.optimizer.state_dict()
    assert mine["param_groups"] == other["param_groups"]
    for index, state in mine["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other["state"][index][name])
    assert torch.equal(resumed.generator.get_state(), straight.generator.get_state())


def test_nothing_in_a_checkpoint_is_pickle(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.step()
    for file in trainer.save(tmp_path, 1).iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors"
            header = int.from_bytes(file.read_bytes()[:8], "little")
            json.loads(file.read_bytes()[8 : 8 + header])


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    def build() -> nn.ModuleDict:
        model = nn.ModuleDict({"embed": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    saved, loaded = build(), build()
    path = save_checkpoint(
        tmp_path, 1, modules={"m": saved}, optimizers={}, schedulers={}, state={}, keep=1
    )
    assert (path / "m.safetensors").stat().st_size < 1.5 * 50 * 8 * 4
    load_checkpoint(path, modules={"m": loaded}, optimizers={}, schedulers={})
    assert torch.equal(loaded["head"].weight, saved["embed"].weight)
    assert loaded["head"].weight is loaded["embed"].weight


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    trainer = Trainer()
    for step in (1, 2, 9, 10):
        trainer.save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000009",
        "checkpoint-00000010",
    ]


def test_checkpoints_that_a_run_has_gone_back_behind_are_removed(tmp_path: Path) -> None:
    trainer = Trainer()
    for step in (4, 90, 100, 5):
        trainer.save(tmp_path, step, keep=2)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-00000005"
    assert len(list(tmp_path.iterdir())) == 1


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.save(tmp_path, 1)
    trainer.step()
    path = trainer.save(tmp_path, 1)
    other = Trainer()
    load_checkpoint(path, **other.parts())
    assert torch.equal(other.model[0].weight, trainer.model[0].weight)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("file", ["policy.safetensors", "tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_latest_skips_torn_checkpoints(tmp_path: Path, file: str, damage: str) -> None:
    trainer = Trainer()
    trainer.step()
    good = trainer.save(tmp_path, 1)
    torn = trainer.save(tmp_path, 2) / file
    if damage == "gone":
        torn.unlink()
    else:
        torn.write_bytes(torn.read_bytes()[:-7])
    assert latest_checkpoint(tmp_path) == good
    with pytest.raises(ValueError, match="torn"):
        load_checkpoint(torn.parent, **trainer.parts())


def test_kill_while_writing_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer()
    good = trainer.save(tmp_path, 1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for victim in ("save_file", "_fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(module_under_test, victim, die)
            with pytest.raises(KeyboardInterrupt):
                trainer.save(tmp_path, 2)
        assert latest_checkpoint(tmp_path) == good
    assert latest_checkpoint(tmp_path) == good
    trainer.save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-00000002"


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_objects_of_another_run_are_refused(tmp_path: Path) -> None:
    trainer = Trainer()
    path = trainer.save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"optimizers \['policy'\]"):
        load_checkpoint(path, **{**trainer.parts(), "optimizers": {}})
    with pytest.raises(ValueError, match="no module 'critic'"):
        load_checkpoint(path, **{**trainer.parts(), "modules": {"critic": nn.Linear(1, 1)}})
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(path, **{**trainer.parts(), "modules": {"policy": nn.Linear(1, 1)}})


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        save_checkpoint(
            tmp_path,
            1,
            modules={"../x": nn.Linear(1, 1)},
            optimizers={},
            schedulers={},
            state={},
            keep=1,
        )
