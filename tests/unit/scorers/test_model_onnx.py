"""Exports of published models: they know their recipe, and are compared where they are read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import published
import pytest
import torch
from fixtures_models import StartScorer
from published import WIDTH, publish, tensors

from rewardsvc.engine.host import EngineHost
from rewardsvc.scorers import scorer_class
from rewardsvc.scorers._onnx import _synthetic, export_scorer
from rewardsvc.scoring import Sample
from rewardsvc.scoring.build import BuildEnv

NUM_OBJECTIVES = 19
SAMPLES = [Sample(prompt="What is 9 * 2?", completion=f"{i} and {i * i}") for i in range(12)]


def gated(folder: Path) -> Path:
    """A tiny ArmoRM."""
    head = tensors(
        gating__layers__0__weight=(16, WIDTH),
        gating__layers__0__bias=(16,),
        gating__layers__1__weight=(NUM_OBJECTIVES, 16),
        gating__layers__1__bias=(NUM_OBJECTIVES,),
        regression_layer__weight=(NUM_OBJECTIVES, WIDTH),
        reward_transform_matrix=(NUM_OBJECTIVES, NUM_OBJECTIVES),
    ) | {"gating.logit_scale": torch.tensor([1.3])}
    return publish(
        folder,
        "llama",
        made=published.llama3(),
        head=head,
        stated={"architectures": ["LlamaForRewardModelWithGating"], "gating_temperature": 10},
    )


def orm_to_export(folder: Path, engine: EngineHost, **config: object) -> object:
    """Built and not started."""
    cls = scorer_class("orm")
    section = cls.Config(
        type="orm", model=str(folder), dtype="float32", attention="eager", **config
    )

    def no_child(name: str) -> object:
        raise AssertionError(name)

    return cls(section, BuildEnv(name="rm", base_dir=Path(), child=no_child, engine=engine))


async def test_an_export_is_served_with_the_recipe_of_its_checkpoint(
    tmp_path: Path, engine: EngineHost, start_scorer: StartScorer
) -> None:
    folder = gated(tmp_path / "ArmoRM-Llama3-8B-v0.1")
    torch_orm = await start_scorer("orm", model=folder)
    expected = [score.value for score in await torch_orm.score(SAMPLES)]
    assert np.std(expected) > 1e-3, "a model that says the same of everything shows nothing"

    target = tmp_path / "anything"
    described, _ = export_scorer(
        orm_to_export(folder, engine), target, precision="float32", opset=18
    )
    assert (described.recipe, described.head) == ("armorm", "gated")
    served = await start_scorer("orm", model=target, backend="onnx")
    values = [score.value for score in await served.score(SAMPLES)]
    assert values == pytest.approx(expected, abs=1e-5)


async def test_synthetic_samples_hold_what_the_gate_is_read_at(
    tmp_path: Path, engine: EngineHost
) -> None:
    orm = orm_to_export(gated(tmp_path / "ArmoRM-Llama3-8B-v0.1"), engine)
    vocab_size = orm.load_checkpoint("cpu").model.config.vocab_size
    described = SimpleNamespace(vocab_size=vocab_size, max_length=64, pair=False)
    pattern = orm._pattern
    assert len(pattern) > 1
    items = _synthetic(orm, described)
    assert len({len(item) for item in items}) > 10
    for item in items:
        gate, last = item.positions
        assert last == len(item) - 1
        assert np.array_equal(item.token_ids[gate : gate + len(pattern)], pattern)


@pytest.mark.parametrize("pooling", ["first", "mean", {"token": 7}])
async def test_synthetic_samples_are_read_as_the_head_is_pooled(
    pooling: object, tmp_path: Path, engine: EngineHost
) -> None:
    folder = publish(
        tmp_path / "rm",
        "llama",
        made=published.llama3(),
        auto_class="AutoModelForSequenceClassification",
        num_labels=1,
    )
    orm = orm_to_export(folder, engine, pooling=pooling)
    orm.load_checkpoint("cpu")
    ids, positions = orm.as_sample(np.arange(100, 110, dtype=np.int32))
    if pooling == "first":
        assert [*positions] == [0]
    elif pooling == "mean":
        assert [*positions] == [*range(len(ids))]
    else:
        (place,) = positions
        assert ids[place] == 7
