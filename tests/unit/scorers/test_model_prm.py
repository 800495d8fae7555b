"""`prm`: steps are found where they are, or the sample has an error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from fixtures_models import StartScorer

from rewardsvc.errors import ConfigError, ItemErrorCode
from rewardsvc.scorers.prm import REDUCE, PrmConfig
from rewardsvc.scoring import Message, Sample

STEP = "<extra_0>"


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_checkpoint(
        tmp_path_factory.mktemp("models") / "prm",
        "qwen2",
        "AutoModelForTokenClassification",
        num_labels=2,
    )


@pytest.fixture(scope="module")
def one_label(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.write_causal_lm(tmp_path_factory.mktemp("models") / "prm")
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    return tiny_models.add_tensors(folder, {"v_head.weight": weight})


async def test_completion_without_a_step_token_has_no_steps_and_neighbours_do(
    two_labels: Path, start_scorer: StartScorer
) -> None:
    prm = await start_scorer("prm", model=two_labels, step_token=STEP)
    without, with_two, empty, in_prompt = await prm.score(
        [
            Sample(prompt="a", completion="bcd"),
            Sample(prompt="a", completion=f"b{STEP}c{STEP}"),
            Sample(prompt="a", completion=""),
            Sample(prompt=f"a{STEP}", completion="b"),
        ]
    )
    assert len(with_two.steps) == 2
    for score in (without, empty, in_prompt):
        assert score.error is not None
        assert score.error.code is ItemErrorCode.NO_STEPS


async def test_separator_closes_every_step_with_the_step_token(
    two_labels: Path, start_scorer: StartScorer
) -> None:
    plain = await start_scorer("prm", model=two_labels, step_token=STEP)
    split = await start_scorer("prm", model=two_labels, step_token=STEP, step_separator="\n\n")
    (marked,) = await plain.score([Sample(prompt="a", completion=f"b+c{STEP}d{STEP}e{STEP}")])
    text, chat, nothing = await split.score(
        [
            Sample(prompt="a", completion="b+c\n\nd\n\n\n\ne\n\n"),
            Sample(prompt=(Message("user", "a"),), completion=(Message("assistant", "b\n\nc"),)),
            Sample(prompt="", completion="\n\n \n\n"),
        ]
    )
    assert text.steps == pytest.approx(marked.steps, abs=1e-6)
    assert len(chat.steps) == 2
    assert nothing.error is not None
    assert nothing.error.code is ItemErrorCode.NO_STEPS


async def test_token_ids_count_steps_of_the_completion_alone(
    two_labels: Path, start_scorer: StartScorer
) -> None:
    step = tiny_models.VOCAB[STEP]
    prm = await start_scorer("prm", model=two_labels, step_token=step)
    (score,) = await prm.score([Sample(prompt=(9, step), completion=(10, step, 11, step))])
    assert len(score.steps) == 2


async def test_truncation_never_shortens_the_list_of_steps(
    two_labels: Path, start_scorer: StartScorer
) -> None:
    sample = Sample(prompt="abcdef", completion=f"g{STEP}h{STEP}")
    right = await start_scorer(
        "prm", model=two_labels, step_token=STEP, max_length=9, truncation_side="right"
    )
    left = await start_scorer(
        "prm", model=two_labels, step_token=STEP, max_length=6, truncation_side="left"
    )
    (cut,) = await right.score([sample])
    (kept,) = await left.score([sample])
    assert cut.error is not None
    assert cut.error.code is ItemErrorCode.TOO_LONG
    assert "cut off 1 of 2 steps" in cut.error.message
    assert len(kept.steps) == 2


@pytest.mark.parametrize("reduce", list(REDUCE))
async def test_value_is_the_reduction_of_the_steps(
    reduce: str, two_labels: Path, start_scorer: StartScorer
) -> None:
    prm = await start_scorer("prm", model=two_labels, step_token=STEP, reduce=reduce)
    (score,) = await prm.score([Sample(prompt="a", completion=f"b{STEP}c{STEP}d{STEP}")])
    total = sum(score.steps)
    by_hand = {
        "min": sorted(score.steps)[0],
        "prod": score.steps[0] * score.steps[1] * score.steps[2],
        "mean": total / 3,
        "last": score.steps[2],
        "sum": total,
        "softmin": np.dot(score.steps, np.exp(-10 * np.asarray(score.steps)))
        / np.exp(-10 * np.asarray(score.steps)).sum(),
    }
    assert score.value == pytest.approx(by_hand[reduce])


async def test_one_logit_is_a_sigmoid_or_raw(one_label: Path, start_scorer: StartScorer) -> None:
    sample = Sample(prompt="a", completion="b step c step")
    values = {}
    for activation in ("auto", "sigmoid", "none"):
        prm = await start_scorer("prm", model=one_label, step_token="step", activation=activation)
        (score,) = await prm.score([sample])
        values[activation] = score.steps
    assert values["auto"] == values["sigmoid"]
    expected = [1 / (1 + math.exp(-raw)) for raw in values["none"]]
    assert values["sigmoid"] == pytest.approx(expected, abs=1e-6)


async def test_step_token_that_is_not_one_token_is_refused(
    two_labels: Path, start_scorer: StartScorer
) -> None:
    with pytest.raises(ConfigError, match="step_token: 'abc' is 3 tokens"):
        await start_scorer("prm", model=two_labels, step_token="abc")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"good_label": 2}, "good_label: 2"),
        ({"step_token": 6, "step_separator": "."}, "step_separator: needs step_token as text"),
        ({"head": "value_head", "value_head_prefix": "nose"}, "value_head_prefix: .*nose"),
        ({"good_token": "+", "bad_token": "ab"}, "bad_token: 'ab' is 2 tokens"),
    ],
)
async def test_configuration_that_does_not_fit_the_model_is_refused(
    config: dict[str, Any], message: str, two_labels: Path, start_scorer: StartScorer
) -> None:
    with pytest.raises(ConfigError, match=message):
        await start_scorer("prm", model=two_labels, **{"step_token": STEP} | config)


async def test_softmax_of_one_logit_is_refused(one_label: Path, start_scorer: StartScorer) -> None:
    with pytest.raises(ConfigError, match="softmax of one label"):
        await start_scorer("prm", model=one_label, step_token="step", activation="softmax")


async def test_causal_model_without_any_head_says_what_to_set(
    tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_causal_lm(tmp_path / "lm")
    with pytest.raises(ConfigError, match="set good_token and bad_token"):
        await start_scorer("prm", model=folder, step_token="step")


@pytest.mark.parametrize(
    "config",
    [
        {"good_token": "+"},
        {"head": "causal_lm"},
        {"head": "value_head", "good_token": "+", "bad_token": "-"},
    ],
)
def test_tokens_and_head_that_contradict_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="good_token"):
        PrmConfig.model_validate({"model": "m", "step_token": "step"} | config)


async def test_read_before_needs_something_before(
    one_label: Path, start_scorer: StartScorer
) -> None:
    prm = await start_scorer("prm", model=one_label, step_token="step", read="before", bos="never")
    (score,) = await prm.score([Sample(completion="step a")])
    assert score.error is not None
    assert score.error.code is ItemErrorCode.INVALID_SAMPLE
