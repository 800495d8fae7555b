"""`orm`: one bad sample harms no other, and calls of any size and number are served."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from fixtures_models import StartScorer
from safetensors.torch import save_file

from rewardsvc.errors import ItemErrorCode
from rewardsvc.scorers.orm import OrmConfig
from rewardsvc.scoring import Message, Sample

POISON = tiny_models.VOCAB["z"]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_reward_model(tmp_path_factory.mktemp("models") / "rm")


def poison(model: Any) -> None:
    model.get_input_embeddings().weight[POISON] = float("nan")


@pytest.mark.parametrize("family", ["bert", "llama"])
async def test_sample_that_makes_the_model_give_nan_fails_alone(
    family: str, tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "rm", family, change=poison)
    orm = await start_scorer("orm", model=folder)
    clean = [Sample(prompt="ab", completion="c" * n) for n in range(1, 6)]
    alone = [score.value for score in await orm.score(clean)]

    scores = await orm.score([*clean[:2], Sample(prompt="ab", completion="xyz"), *clean[2:]])

    bad = scores.pop(2)
    assert bad.error is not None
    assert bad.error.code is ItemErrorCode.NON_FINITE
    assert [score.value for score in scores] == pytest.approx(alone, abs=1e-5)


async def test_bad_samples_are_answered_among_good_ones(
    reward_model: Path, start_scorer: StartScorer
) -> None:
    orm = await start_scorer("orm", model=reward_model, bos="never")
    good = Sample(prompt="ab", completion="cd")
    (expected,) = await orm.score([good])
    scores = await orm.score(
        [
            good,
            Sample(prompt="a", completion="b" * 500),
            Sample(prompt=(1,), completion=(9999,)),
            Sample(prompt="a", completion="\udcff"),
            Sample(prompt="", completion=""),
            Sample(prompt=(Message("pirate", "a"),), completion="b"),
            Sample(prompt="ab", completion=""),
            good,
        ]
    )
    invalid = ItemErrorCode.INVALID_SAMPLE
    codes = [score.error and score.error.code for score in scores]
    assert codes == [None, ItemErrorCode.TOO_LONG, invalid, invalid, invalid, invalid, None, None]
    for score in (scores[0], scores[-1]):
        assert score.value == pytest.approx(expected.value, abs=1e-5)


async def test_empty_completion_is_scored_like_the_prompt_alone(
    reward_model: Path, start_scorer: StartScorer
) -> None:
    orm = await start_scorer("orm", model=reward_model)
    empty, prompt = await orm.score([Sample(prompt="abc", completion=""), Sample(completion="abc")])
    assert empty.value == pytest.approx(prompt.value, abs=1e-6)


async def test_concurrent_calls_get_their_own_scores(
    reward_model: Path, start_scorer: StartScorer
) -> None:
    orm = await start_scorer("orm", model=reward_model)
    calls = [
        [Sample(prompt="ab", completion="c" * (1 + i % 7) + "d" * j) for j in range(4)]
        for i in range(32)
    ]
    flat = [sample for call in calls for sample in call]
    expected = [score.value for score in await orm.score(flat)]
    answers = await asyncio.gather(*(orm.score(call) for call in calls))
    found = [score.value for answer in answers for score in answer]
    assert found == pytest.approx(expected, abs=1e-5)


async def test_truncated_sample_equals_the_sample_that_is_left(
    reward_model: Path, start_scorer: StartScorer
) -> None:
    orm = await start_scorer("orm", model=reward_model, max_length=5, truncation_side="left")
    cut, left = await orm.score([Sample(completion="abcdefgh"), Sample(completion="efgh")])
    assert cut.value == pytest.approx(left.value, abs=1e-6)


async def test_normalized_score_keeps_the_raw_one_as_a_component(
    reward_model: Path, start_scorer: StartScorer
) -> None:
    sample = Sample(prompt="ab", completion="cd")
    (raw,) = await (await start_scorer("orm", model=reward_model)).score([sample])
    scaled = await start_scorer("orm", model=reward_model, normalize={"mean": 2.0, "std": 4.0})
    (score,) = await scaled.score([sample])
    assert score.components["raw"] == pytest.approx(raw.value, abs=1e-6)
    assert score.value == pytest.approx((raw.value - 2.0) / 4.0, abs=1e-6)


def test_standard_deviation_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        OrmConfig.model_validate({"model": "m", "normalize": {"mean": 0.0, "std": 0.0}})


async def test_half_precision_is_computed_in_and_stays_close(
    reward_model: Path, start_scorer: StartScorer
) -> None:
    samples = [Sample(prompt="ab", completion="c" * n) for n in range(1, 9)]
    full = await (await start_scorer("orm", model=reward_model)).score(samples)
    half = await (await start_scorer("orm", model=reward_model, dtype="bfloat16")).score(samples)
    differences = [abs(a.value - b.value) for a, b in zip(full, half, strict=True)]
    assert 0 < max(differences) < 0.5


async def test_head_in_a_file_of_its_own_beside_shards_is_found(
    tmp_path: Path, start_scorer: StartScorer
) -> None:
    whole = tiny_models.write_causal_lm(tmp_path / "whole", "qwen2")
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    sharded = tmp_path / "sharded"
    shutil.copytree(whole, sharded)
    (sharded / "model.safetensors").unlink()
    model = transformers.AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    save_file(head, sharded / "value_head.safetensors")
    tiny_models.add_tensors(whole, head)
    sample = Sample(prompt="ab", completion="cd")
    (expected,) = await (await start_scorer("orm", model=whole)).score([sample])
    (score,) = await (await start_scorer("orm", model=sharded)).score([sample])
    assert score.value == pytest.approx(expected.value, abs=1e-5)


async def test_two_layer_head_is_read_from_its_tensors(
    tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_checkpoint(tmp_path / "rm", "qwen2", "AutoModel")
    torch.manual_seed(0)
    first, last = torch.nn.Linear(32, 16), torch.nn.Linear(16, 1)
    layers = {"score.0": first, "score.2": last}
    tensors = {f"{n}.{p}": t.data for n, m in layers.items() for p, t in m.named_parameters()}
    tiny_models.add_tensors(folder, tensors)
    orm = await start_scorer("orm", model=folder)
    (score,) = await orm.score([Sample(prompt=(9, 10), completion=(11,))])

    trunk = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = trunk(input_ids=torch.tensor([[9, 10, 11]])).last_hidden_state[0, -1]
        expected = last(first(hidden).relu()).item()
    assert score.value == pytest.approx(expected, abs=1e-5)
