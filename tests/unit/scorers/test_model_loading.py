"""What loading a checkpoint refuses, and how it is told apart from others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from fixtures_models import StartScorer

from rewardsvc.engine.host import EngineHost
from rewardsvc.engine.logprobs import PLAIN_LOGITS
from rewardsvc.errors import ConfigError, ScorerUnusableError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers.orm import Orm, OrmConfig
from rewardsvc.scoring import Sample
from rewardsvc.scoring.build import BuildEnv

SAMPLE = Sample(prompt="ab", completion="cd")


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_reward_model(tmp_path_factory.mktemp("models") / "rm")


@pytest.fixture
def copy(reward_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reward_model, tmp_path / "copy"))


async def test_folder_that_is_gone_is_named(tmp_path: Path, start_scorer: StartScorer) -> None:
    with pytest.raises(ConfigError, match=r"model: '.*gone' does not exist"):
        await start_scorer("orm", model=tmp_path / "gone")


async def test_weights_that_are_not_safetensors_are_refused(
    copy: Path, start_scorer: StartScorer
) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \*.safetensors file"):
        await start_scorer("orm", model=copy)


async def test_damaged_weights_are_refused(copy: Path, start_scorer: StartScorer) -> None:
    (copy / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json")
    with pytest.raises(ConfigError, match="model: "):
        await start_scorer("orm", model=copy)


async def test_shard_that_is_missing_is_named(copy: Path, start_scorer: StartScorer) -> None:
    (copy / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "part-2.safetensors"}}'
    )
    with pytest.raises(ConfigError, match=r"lacks part-2\.safetensors"):
        await start_scorer("orm", model=copy)


@pytest.mark.parametrize("family", ["bert", "llama"])
async def test_head_that_nobody_trained_is_refused_and_named(
    family: str, tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_checkpoint(tmp_path / "base", family, "AutoModel")
    name = "classifier.weight" if family == "bert" else r"score\.weight"
    with pytest.raises(ConfigError, match=f"has no weights .*{name}"):
        await start_scorer("orm", model=folder)


async def test_layer_that_is_missing_is_refused_and_named(
    copy: Path, start_scorer: StartScorer
) -> None:
    layer = "model.layers.1.mlp.up_proj.weight"
    tiny_models.add_tensors(copy, {}, drop=[layer])
    with pytest.raises(ConfigError, match=layer):
        await start_scorer("orm", model=copy)


async def test_head_of_another_width_is_refused(copy: Path, start_scorer: StartScorer) -> None:
    tiny_models.add_tensors(copy, {"v_head.weight": torch.ones(1, 7)})
    with pytest.raises(ConfigError, match=r"v_head\.weight takes 7 numbers, and gets 32"):
        await start_scorer("orm", model=copy, value_head_prefix="v_head")


async def test_value_head_that_is_not_there_is_named(copy: Path, start_scorer: StartScorer) -> None:
    with pytest.raises(ConfigError, match=r"no head tensor nose\.weight"):
        await start_scorer("orm", model=copy, value_head_prefix="nose")


async def test_several_labels_need_a_choice(tmp_path: Path, start_scorer: StartScorer) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "rm", num_labels=3)
    with pytest.raises(ConfigError, match="label: the model has 3 labels"):
        await start_scorer("orm", model=folder)
    with pytest.raises(ConfigError, match="label: 3"):
        await start_scorer("orm", model=folder, label=3)
    values = []
    for label in range(3):
        (score,) = await (await start_scorer("orm", model=folder, label=label)).score([SAMPLE])
        values.append(score.value)
    assert len(set(values)) == 3


async def test_number_of_labels_is_that_of_the_head_where_the_checkpoint_is_silent(
    copy: Path, start_scorer: StartScorer
) -> None:
    file = copy / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(
        json.dumps({k: v for k, v in settings.items() if k not in ("id2label", "label2id")})
    )
    orm = await start_scorer("orm", model=copy)
    assert (await orm.score([SAMPLE]))[0].ok


async def test_model_that_changes_its_logits_in_an_unknown_way_is_refused(
    tmp_path: Path, start_scorer: StartScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.write_causal_lm(tmp_path / "lm", "gemma2", final_logit_softcapping=0.5)
    monkeypatch.setattr("rewardsvc.scorers.causal_lm.logit_rule", lambda model: PLAIN_LOGITS)
    with pytest.raises(ConfigError, match="does more than apply its head"):
        await start_scorer("causal_lm", model=folder)


async def test_normalization_that_the_checkpoint_does_not_state_is_refused(
    reward_model: Path, start_scorer: StartScorer
) -> None:
    with pytest.raises(ConfigError, match="normalize: 'checkpoint'"):
        await start_scorer("orm", model=reward_model, normalize="checkpoint")


async def test_more_positions_than_the_model_learned_are_refused(
    tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "rm", "roberta", pad_token_id=1)
    with pytest.raises(ConfigError, match="max_length: 127, but the model has 126 positions"):
        await start_scorer("orm", model=folder, max_length=127)
    longest = await start_scorer("orm", model=folder)
    fits, too_long = await longest.score(
        [Sample(completion="a" * 124), Sample(completion="a" * 125)]
    )
    assert fits.ok
    assert "127 tokens and the model takes 126" in too_long.error.message


async def test_tokenizer_that_is_gone_is_named(
    reward_model: Path, tmp_path: Path, start_scorer: StartScorer
) -> None:
    with pytest.raises(ConfigError, match="tokenizer: .*gone"):
        await start_scorer("orm", model=reward_model, tokenizer=str(tmp_path / "gone"))


async def test_model_without_tokenizer_scores_token_ids(
    copy: Path, start_scorer: StartScorer
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    orm = await start_scorer("orm", model=copy)
    by_ids, by_text = await orm.score([Sample(prompt=(1, 20), completion=(21,)), SAMPLE])
    assert by_ids.ok
    assert "no tokenizer" in by_text.error.message


async def test_unknown_device_is_refused(reward_model: Path, start_scorer: StartScorer) -> None:
    with pytest.raises(ConfigError, match="device: 'abacus'"):
        await start_scorer("orm", model=reward_model, device="abacus")


async def test_scorer_that_was_not_started_says_so(reward_model: Path, engine: EngineHost) -> None:
    def no_child(name: str) -> Any:
        raise AssertionError(name)

    env = BuildEnv(name="cold", base_dir=reward_model.parent, child=no_child, engine=engine)
    with pytest.raises(ScorerUnusableError, match="cold"):
        await Orm(OrmConfig(model=f"./{reward_model.name}"), env).score([SAMPLE])


async def test_model_path_is_relative_to_the_configuration(
    reward_model: Path, engine: EngineHost
) -> None:
    def no_child(name: str) -> Any:
        raise AssertionError(name)

    env = BuildEnv(name="near", base_dir=reward_model.parent, child=no_child, engine=engine)
    orm = Orm(OrmConfig(model=f"./{reward_model.name}"), env)
    await orm.start()
    assert (await orm.score([SAMPLE]))[0].ok


def digest(folder: Path, *extra: str) -> str:
    return Checkpoint.find(str(folder), revision=None, with_code=False).digest(*extra)


def test_digest_is_the_same_for_copies_and_differs_for_any_change(
    reward_model: Path, copy: Path
) -> None:
    original = digest(reward_model)
    assert digest(copy) == original
    assert digest(copy, "dtype") != original
    trained = {"score.weight": torch.full((1, 32), 0.125)}
    assert digest(tiny_models.add_tensors(copy, trained)) != original


def test_digest_sees_a_new_chat_template(copy: Path) -> None:
    before = digest(copy)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert digest(copy) != before


async def test_version_changes_with_weights_and_configuration(
    reward_model: Path, copy: Path, start_scorer: StartScorer
) -> None:
    first = await start_scorer("orm", model=copy)
    assert first.version.startswith("copy@")
    assert (await start_scorer("orm", model=copy)).version == first.version
    assert (await start_scorer("orm", model=copy, append_eos=True)).version != first.version
    tiny_models.add_tensors(copy, {"score.weight": torch.zeros(1, 32)})
    assert (await start_scorer("orm", model=copy)).version != first.version


def test_remote_code_is_off_and_declared_when_on() -> None:
    assert not OrmConfig(model="m").runs_code_of_the_config()
    assert OrmConfig(model="m", trust_remote_code=True).runs_code_of_the_config()
