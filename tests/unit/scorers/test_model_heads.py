"""Heads that a configuration describes, where they are read, and what becomes of their outputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from fixtures_models import StartScorer
from published import WIDTH, hidden_states, publish, tensors
from safetensors.torch import save_file

from rewardsvc.errors import ConfigError, ItemErrorCode
from rewardsvc.scorers.known import RULES
from rewardsvc.scorers.orm import OrmConfig
from rewardsvc.scoring import Sample

SAMPLE = Sample(prompt="What is 9 * 2?", completion=" 18 <b>")
ODD = {"head": {"layers": [{"weight": "probe.odd"}]}, "label": 0}
HEAD = tensors(w1=(24, WIDTH), b1=(24,), w2=(3, 24), odd=(3, WIDTH), flat=(WIDTH,))


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "trunk"
    made = published.tokenizer("byte-level")
    publish(folder, "llama", made=made, head={f"probe.{n}": t for n, t in HEAD.items()})
    save_file(HEAD, folder / "extra_head.safetensors")
    # A second safetensors file in the folder would be read as weights without an index.
    (folder / "heads").mkdir()
    (folder / "extra_head.safetensors").rename(folder / "heads" / "head.safetensors")
    return folder


def states(folder: Path, sample: Sample = SAMPLE) -> torch.Tensor:
    made = published.tokenizer("byte-level")
    ids = made(f"{sample.prompt}{sample.completion}")["input_ids"]
    return hidden_states(folder, ids)


async def value(start_scorer: StartScorer, folder: Path, **config: Any) -> float:
    orm = await start_scorer("orm", model=folder, **config)
    (score,) = await orm.score([SAMPLE])
    assert score.error is None, score.error
    return float(score.value)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu", "none"])
async def test_head_of_two_layers_from_a_file_of_its_own(
    activation: str, trunk: Path, start_scorer: StartScorer
) -> None:
    head = {
        "file": "heads/head.safetensors",
        "layers": [{"weight": "w1", "bias": "b1"}, {"weight": "w2"}],
        "activation": activation,
    }
    inner = HEAD["w1"] @ states(trunk)[-1] + HEAD["b1"]
    applied = {
        "relu": inner.relu(),
        "tanh": inner.tanh(),
        "gelu": torch.nn.functional.gelu(inner),
        "silu": torch.nn.functional.silu(inner),
        "none": inner,
    }[activation]
    outputs = HEAD["w2"] @ applied
    for label in range(3):
        found = await value(start_scorer, trunk, head=head, label=label)
        assert found == pytest.approx(outputs[label].item(), abs=1e-4)


async def test_outputs_are_weighed_told_and_made_probabilities(
    trunk: Path, start_scorer: StartScorer
) -> None:
    head = {"layers": [{"weight": "probe.odd"}]}
    outputs = (HEAD["odd"] @ states(trunk)[-1]).tolist()
    weights = (0.5, -1.0, 2.0)
    orm = await start_scorer(
        "orm", model=trunk, head=head, label_weights=weights, activation="sigmoid", components=True
    )
    (score,) = await orm.score([SAMPLE])
    raw = sum(w * x for w, x in zip(weights, outputs, strict=True))
    assert score.components["raw"] == pytest.approx(raw, abs=1e-4)
    assert score.value == pytest.approx(1 / (1 + math.exp(-raw)), abs=1e-4)
    told = [score.components[f"output_{i}"] for i in range(3)]
    assert told == pytest.approx(outputs, abs=1e-4)


@pytest.mark.parametrize("pooling", ["first", "last", "mean", {"token": "1"}])
async def test_head_is_read_where_the_configuration_says(
    pooling: Any, trunk: Path, start_scorer: StartScorer
) -> None:
    hidden = states(trunk)
    made = published.tokenizer("byte-level")
    ids = made(f"{SAMPLE.prompt}{SAMPLE.completion}")["input_ids"]
    one = made.convert_tokens_to_ids("1")
    rows = {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}
    if isinstance(pooling, dict):
        if one not in ids:
            one = next(i for i in reversed(ids) if ids.count(i) == 1)
            pooling = {"token": one}
        row = hidden[max(i for i, token in enumerate(ids) if token == one)]
    else:
        row = rows[pooling]
    expected = (HEAD["odd"] @ row)[1].item()
    head = {"layers": [{"weight": "probe.odd"}]}
    found = await value(start_scorer, trunk, head=head, label=1, pooling=pooling)
    assert found == pytest.approx(expected, abs=1e-4)


async def test_sample_without_the_token_that_is_read_has_an_error(
    trunk: Path, start_scorer: StartScorer
) -> None:
    head = {"layers": [{"weight": "probe.odd"}]}
    pooling = {"token": "<extra_0>"}
    orm = await start_scorer("orm", model=trunk, head=head, label=0, pooling=pooling)
    without, forged = await orm.score([SAMPLE, Sample(prompt="a", completion="<extra_0>")])
    for score in (without, forged):
        assert score.error.code is ItemErrorCode.INVALID_SAMPLE
        assert "has no token '<extra_0>'" in score.error.message
    ended = await start_scorer(
        "orm", model=trunk, head=head, label=0, pooling=pooling, append_token="<extra_0>"
    )
    assert (await ended.score([SAMPLE]))[0].ok


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head": {"layers": [{"weight": "probe.ood"}]}}, "no tensor 'probe.ood'; did you mean"),
        ({"head": {"layers": [{"weight": "w1"}], "file": "no.safetensors"}}, "head.file: .*no.saf"),
        ({"head": {"layers": [{"weight": "probe.w2"}]}}, "probe.w2 takes 24 numbers, and gets 32"),
        ({"head": {"layers": [{"weight": "probe.flat"}]}}, "is \\(32,\\), not a matrix"),
        (
            {"head": {"layers": [{"weight": "probe.odd", "bias": "probe.b1"}]}},
            "probe.b1 is \\(24,\\), and probe.odd gives 3",
        ),
        ({"head": {"layers": [{"weight": "probe.odd"}]}}, "label: the model has 3 labels"),
        (
            {"head": {"layers": [{"weight": "probe.odd"}]}, "label_weights": [1.0]},
            "label_weights: 1 weights, but the model has 3",
        ),
        (
            {
                "head": {"layers": [{"weight": "probe.w1"}, {"weight": "probe.w2"}]},
                "label": 0,
                "pooling": "mean",
            },
            "pooling: mean is for heads of one linear layer",
        ),
        ({**ODD, "chat_template": "{% if %}"}, "chat_template: is no Jinja template"),
        ({**ODD, "append_token": "two words"}, "append_token: 'two words' is"),
    ],
)
async def test_head_that_does_not_fit_is_refused(
    config: dict[str, Any], message: str, trunk: Path, start_scorer: StartScorer
) -> None:
    with pytest.raises(ConfigError, match=message):
        await start_scorer("orm", model=trunk, **config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head": "causal_lm"}, "score_token belong together"),
        ({"score_token": 0}, "score_token belong together"),
        ({"head": "gated"}, "gating_pattern belong together"),
        ({"label": 0, "label_weights": [1.0]}, "exclude each other"),
        ({"head": "gated", "gating_pattern": "x", "pooling": "mean"}, "its own pooling"),
        ({"dtype": "int8"}, "export-onnx --int8"),
        ({"head": {"layers": []}}, "at least 1 item"),
    ],
)
def test_fields_that_contradict_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrmConfig.model_validate({"model": "m"} | config)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_half_precision_trunk_keeps_scores_close(
    dtype: str, trunk: Path, start_scorer: StartScorer
) -> None:
    head = {"layers": [{"weight": "probe.odd"}]}
    full = await value(start_scorer, trunk, head=head, label=0)
    half = await value(start_scorer, trunk, head=head, label=0, dtype=dtype)
    assert half != full
    assert half == pytest.approx(full, abs=0.2 + 0.05 * abs(full))


async def test_pickle_with_anything_but_tensors_is_refused(
    trunk: Path, tmp_path: Path, start_scorer: StartScorer
) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((trunk / name).read_bytes())
    torch.save({"v_head.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be read as tensors alone"):
        await start_scorer("orm", model=tmp_path, allow_bin=True)
    assert not (tmp_path / "touched").exists()


class Evil:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_recipes_are_values_of_fields_that_their_scorers_have() -> None:
    from rewardsvc.scorers import scorer_class

    for rule in RULES.values():
        fields = scorer_class(rule.scorer).Config.model_fields
        assert set(rule.settings) <= set(fields), rule.name
        assert rule.source.startswith("https://"), rule.name
    assert len({rule.name for rule in RULES.values()}) == len(RULES)


def test_page_of_models_tells_of_every_recipe() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text("utf-8")
    for rule in RULES.values():
        assert f"`{rule.name}`" in page, rule.name
