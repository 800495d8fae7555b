"""Exported models, behind the engine, score as plain transformers does; int8 ranks alike."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
import torch
import transformers
from fixtures_models import StartScorer
from typer.testing import CliRunner

from rewardsvc.commands import app
from rewardsvc.engine.onnx.folder import DESCRIPTION_FILE, MODEL_FILE
from rewardsvc.errors import ConfigError, ItemErrorCode
from rewardsvc.scoring import Sample

TOLERANCE = 1e-5

Export = Callable[..., Path]


def run_export(scratch: Path, model: Path, *options: str, **section: Any) -> Path:
    """Runs the command on a configuration with one scorer; returns the folder it wrote."""
    config = scratch / "service.yaml"
    config.write_text(
        json.dumps({"scorers": {"rm": {"type": "orm", "model": str(model)} | section}})
    )
    out = scratch / "exported"
    arguments = ["export-onnx", str(config), "--scorer", "rm", "-o", str(out), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """`export(model, "--int8", type="prm", …)`: see `run_export`."""
    return partial(run_export, tmp_path)


@pytest.fixture(scope="module")
def exported_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported encoder; its checkpoint is `rm` beside it. Not to be changed."""
    scratch = tmp_path_factory.mktemp("bert")
    return run_export(scratch, tiny_models.write_reward_model(scratch / "rm", "bert"))


def random_samples(num_samples: int) -> list[Sample]:
    """Texts of mixed lengths; one with an empty completion."""
    rng = random.Random(0)

    def text() -> str:
        return "".join(rng.choices("abcxy 0123+-=\n", k=rng.randint(1, 50)))

    samples = [Sample(prompt=text(), completion=text()) for _ in range(num_samples - 1)]
    return [*samples, Sample(prompt=text(), completion="")]


def plain(folder: Path, auto_class: str) -> tuple[Any, Any]:
    """Model and tokenizer as anybody would load them."""
    model = getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def plain_scores(folder: Path, samples: list[Sample]) -> list[float]:
    model, tokenizer = plain(folder, "AutoModelForSequenceClassification")
    inputs = [tokenizer(f"{s.prompt}{s.completion}", return_tensors="pt") for s in samples]
    return [model(**one).logits[0, 0].item() for one in inputs]


@pytest.mark.parametrize("family", ["bert", "mistral"])
async def test_orm_scores_equal_plain_transformers_in_any_order(
    family: str, tmp_path: Path, exported_bert: Path, start_scorer: StartScorer
) -> None:
    if family == "bert":
        folder, exported = exported_bert.parent / "rm", exported_bert
    else:
        folder = tiny_models.write_reward_model(tmp_path / "rm", family)
        exported = run_export(tmp_path, folder)
    samples = random_samples(30)
    expected = plain_scores(folder, samples)
    assert np.std(expected) > 0.05, "a model that says the same of everything shows nothing"
    orm = await start_scorer("orm", model=exported, backend="onnx")

    order = random.Random(1).sample(range(len(samples)), len(samples))
    scores = await orm.score([samples[i] for i in order])

    values = [score.value for score in scores]
    assert values == pytest.approx([expected[i] for i in order], abs=TOLERANCE)


async def test_text_pairs_of_an_encoder_equal_plain_transformers(
    tmp_path: Path, export: Export, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "rm", "bert")
    samples = random_samples(10)
    model, tokenizer = plain(folder, "AutoModelForSequenceClassification")
    with torch.inference_mode():
        expected = [
            model(
                **tokenizer(s.prompt, s.completion, return_tensors="pt", return_token_type_ids=True)
            ).logits.item()
            for s in samples
        ]
    exported = export(folder, pair=True)
    orm = await start_scorer("orm", model=exported, backend="onnx", pair=True)

    scores = await orm.score(samples)

    assert [score.value for score in scores] == pytest.approx(expected, abs=TOLERANCE)
    with pytest.raises(ConfigError, match="pair: False"):
        await start_scorer("orm", model=exported, backend="onnx")


async def test_prm_steps_equal_plain_transformers(
    tmp_path: Path, export: Export, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_checkpoint(
        tmp_path / "prm", "qwen2", "AutoModelForTokenClassification", num_labels=2
    )
    texts = ["a+b<extra_0>c=d<extra_0>", "x<extra_0>", "1+1=2<extra_0>so 3<extra_0>done<extra_0>"]
    samples = [Sample(prompt="ab", completion=text) for text in texts]
    prm = await start_scorer("prm", model=folder, step_token="<extra_0>", reduce="prod")
    expected = await prm.score(samples)  # the torch backend, which has this test against plain ones

    exported = export(folder, type="prm", step_token="<extra_0>")
    served = await start_scorer(
        "prm", model=exported, backend="onnx", step_token="<extra_0>", reduce="prod"
    )
    scores = await served.score(samples)

    for score, torch_score in zip(scores, expected, strict=True):
        assert score.steps == pytest.approx(torch_score.steps, abs=TOLERANCE)
        assert score.value == pytest.approx(torch_score.value, abs=TOLERANCE)


async def test_prm_on_a_causal_lm_keeps_its_two_tokens_and_refuses_others(
    tmp_path: Path, export: Export, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_causal_lm(tmp_path / "prm", "gemma2")
    tokens = {"step_token": "step", "good_token": "+", "bad_token": "-"}
    sample = Sample(prompt="ab", completion="c+d step a-b step")
    torch_prm = await start_scorer("prm", model=folder, **tokens)
    exported = export(folder, type="prm", **tokens)

    served = await start_scorer("prm", model=exported, backend="onnx", step_token="step")

    (expected,), (score,) = await torch_prm.score([sample]), await served.score([sample])
    assert score.steps == pytest.approx(expected.steps, abs=TOLERANCE)
    with pytest.raises(ConfigError, match="good_token"):
        await start_scorer("prm", model=exported, backend="onnx", **tokens | {"good_token": "="})


async def test_int8_reports_ranks_and_scores_nearly_alike(
    tmp_path: Path, export: Export, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "rm", "bert")
    samples = random_samples(20)
    file = tmp_path / "samples.jsonl"
    rows = [{"prompt": s.prompt, "completion": s.completion} for s in samples]
    file.write_text("\n".join(map(json.dumps, rows)))
    expected = plain_scores(folder, samples)

    exported = export(folder, "--int8", "--samples", str(file))
    orm = await start_scorer("orm", model=exported, backend="onnx")
    values = [score.value for score in await orm.score(samples)]

    agreement = json.loads((exported / DESCRIPTION_FILE).read_text())["agreement"]
    assert agreement["num_samples"] == len(samples)
    assert agreement["spearman"] > 0.95
    differences = np.abs(np.subtract(values, expected))
    assert 1e-6 < differences.max() < 3 * agreement["max_difference"] + 1e-3
    graph = onnx.load(str(exported / MODEL_FILE)).graph
    quantised = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(quantised) >= 12, "six matrices in each of two layers"


async def test_export_serves_without_the_checkpoint_and_one_bad_sample_fails_alone(
    tmp_path: Path, exported_bert: Path, start_scorer: StartScorer
) -> None:
    alone = shutil.copytree(exported_bert, tmp_path / "alone")
    orm = await start_scorer("orm", model=alone, backend="onnx")
    good = Sample(prompt="ab", completion="cd")

    scores = await orm.score([good, Sample(prompt="a", completion="b" * 500), good])

    assert scores[1].error.code is ItemErrorCode.TOO_LONG
    assert scores[0].value == scores[2].value
    assert not list(alone.glob("*.safetensors"))


async def test_fields_without_meaning_for_an_export_are_refused(
    tmp_path: Path, exported_bert: Path, start_scorer: StartScorer
) -> None:
    exported = shutil.copytree(exported_bert, tmp_path / "damaged")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "bfloat16"}, "dtype"),
        ({"head": "value_head"}, "head"),
        ({"max_length": 999}, "max_length"),
    ]
    for section, named in refused:
        with pytest.raises(ConfigError, match=named):
            await start_scorer("orm", model=exported, backend="onnx", **section)
    with pytest.raises(ConfigError, match="of type orm, not prm"):
        await start_scorer("prm", model=exported, backend="onnx", step_token="step")
    with pytest.raises(ConfigError, match="not causal_lm"):
        await start_scorer("causal_lm", model=exported, backend="onnx")
    (exported / MODEL_FILE).write_bytes(b"not a graph")
    with pytest.raises(ConfigError, match="cannot be loaded by ONNX Runtime"):
        await start_scorer("orm", model=exported, backend="onnx")


def test_command_refuses_what_it_cannot_export(tmp_path: Path) -> None:
    config = tmp_path / "service.yaml"
    config.write_text("scorers: {exact: {type: exact}}")
    for arguments, message in (
        ([str(config)], "there are none"),
        ([str(config), "--scorer", "exact"], "there are none"),
        (["./nowhere"], "does not exist"),
        (["./nowhere", "--samples", "x"], "only with --int8"),
    ):
        result = CliRunner().invoke(app, ["export-onnx", *arguments, "-o", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert message in result.output
    assert not (tmp_path / "out").exists()
