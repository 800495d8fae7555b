"""What several processes agree on without talking, and what one alone is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.checkpoint import load_checkpoint, save_checkpoint
from rewardsvc.policy_client.train.config_base import TrainConfigBase
from rewardsvc.policy_client.train.distributed import World
from rewardsvc.policy_client.train.launch import check_patience, join_world, uses_fsdp
from rewardsvc.policy_client.train.online.sampling import (
    CompletionSeeds,
    SamplingParams,
    draw_tokens,
)


class Of(World):
    """One of `size` processes, which talks to nobody."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("num", [0, 1, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_the_whole_in_order_and_even(num: int, size: int):
    shares = [Of(size, rank).share(num) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(num))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_everything_is_dealt_once_and_evenly_by_cost():
    parts = [9, 1, 1, 5, 3, 3, 4, 2]
    hands = Of(3).deal(parts, float)
    assert sorted(part for hand in hands for part in hand) == sorted(parts)
    assert max(map(sum, hands)) - min(map(sum, hands)) <= 1
    assert World().deal(parts, float) == [parts], "one process keeps the order"


def test_seeds_are_of_the_completion_and_not_of_its_chunk():
    whole = CompletionSeeds.derived(5, range(8)).seeds
    assert whole == (
        *CompletionSeeds.derived(5, range(3)).seeds,
        *CompletionSeeds.derived(5, range(3, 8)).seeds,
    )
    others = CompletionSeeds.derived(6, range(8)).seeds
    assert len({*whole, *others}) == 16
    assert all(0 <= seed < 2**63 for seed in whole)


def test_a_row_draws_the_same_numbers_beside_other_rows():
    seeds = CompletionSeeds.derived(1, range(4))
    alone = CompletionSeeds(seeds=seeds.seeds[2:3])
    assert torch.equal(seeds.uniforms(9, torch.device("cpu"))[2:3], alone.uniforms(9, "cpu"))


def test_tokens_drawn_from_uniform_numbers_have_their_probabilities():
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0])
    uniforms = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    sampling = SamplingParams(max_new_tokens=1, temperature=0.8)
    tokens, logprobs, _ = draw_tokens(logits.expand(len(uniforms), -1), sampling, uniforms)
    shares = tokens.bincount(minlength=5) / len(tokens)
    wanted = (logits / 0.8).softmax(-1)
    assert shares.tolist() == pytest.approx(wanted.tolist(), abs=2e-5)
    assert torch.equal(logprobs, wanted.log()[tokens]) or torch.allclose(
        logprobs, wanted.log()[tokens], atol=1e-6
    )


def test_no_token_that_was_cut_off_is_drawn_at_either_end():
    logits = torch.tensor([[-3.0, 1.0, 2.0, -5.0]]).expand(3, -1)
    ends = torch.tensor([0.0, 1.0 - 2.0**-53, 1.0], dtype=torch.float64)
    sampling = SamplingParams(max_new_tokens=1, top_k=2)
    tokens, _, _ = draw_tokens(logits, sampling, ends)
    assert tokens.tolist() == [1, 2, 2]


def _saved(folder: Path, world: World, own: dict[str, torch.Tensor] | None) -> Path:
    return save_checkpoint(
        folder,
        3,
        modules={"policy": torch.nn.Linear(2, 2)},
        optimizers={},
        schedulers={},
        state={},
        own=own,
        world=world,
        keep=1,
    )


def _loaded(path: Path, world: World) -> int:
    policy = {"policy": torch.nn.Linear(2, 2)}
    return load_checkpoint(path, modules=policy, optimizers={}, schedulers={}, world=world).step


def test_the_middle_of_a_step_of_two_processes_is_not_for_one(tmp_path: Path):
    path = _saved(tmp_path, Of(2), {"grad.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="step of 2 processes, and this run has 1; resume with 2"):
        _loaded(path, World())
    assert _loaded(path, Of(2)) == 3
    with pytest.raises(ValueError, match="of 1 processes, and this run has 2"):
        _loaded(_saved(tmp_path / "one", World(), {"grad": torch.ones(2)}), Of(2))


def test_a_whole_step_is_for_any_number_of_processes(tmp_path: Path):
    assert _loaded(_saved(tmp_path, Of(2), None), World()) == 3
    assert _loaded(_saved(tmp_path / "one", World(), None), Of(3, rank=2)) == 3


def test_processes_that_do_not_see_one_folder_are_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="process 1 does not see"):
        _saved(tmp_path, Of(2, rank=1), None)


def test_one_process_cannot_divide_weights(monkeypatch: pytest.MonkeyPatch):
    assert not uses_fsdp(None, World())
    with pytest.raises(ConfigError, match="fsdp: true, and this run is one process"):
        uses_fsdp(True, World())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="told FSDP 1"):
        uses_fsdp(None, Of(2))
    assert not uses_fsdp(False, Of(2))
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert uses_fsdp(None, Of(2))


def test_a_process_without_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = TrainConfigBase.model_validate({"model": "any", "output_dir": tmp_path})
    assert join_world(config).size == 1
    with pytest.raises(ConfigError, match="collective_timeout_s: 1800 must be above"):
        check_patience(Of(2), config.collective_timeout_s, 3600.0)
    check_patience(World(), config.collective_timeout_s, 3600.0)
