"""Reward models are read at the last attended token and learn to order held-out pairs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from rewardsvc.policy_client.train.data import DataError
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.models import (
    load_policy,
    load_reward_model,
    save_pretrained,
    sequence_rewards,
)
from rewardsvc.policy_client.train.reward_model import RewardModelConfig, run_rm
from rewardsvc.policy_client.train.run_log import read_run

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """A preference that a tiny model can learn: more of the letter x is better."""
    character_tokenizer("abx?").save_pretrained(tmp_path / "tokenizer")
    shuffler = random.Random(0)
    rows = []
    while len(rows) < 160:
        one, other = ("".join(shuffler.choices("abx", k=shuffler.randint(3, 8))) for _ in "12")
        if one.count("x") != other.count("x"):
            chosen, rejected = sorted((one, other), key=lambda text: -text.count("x"))
            rows.append({"prompt": "?", "chosen": chosen, "rejected": rejected})
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "config": TINY,
        "tokenizer": str(tmp_path / "tokenizer"),
        "train_data": str(data),
        "eval_size": 40,
        "output_dir": tmp_path / "run",
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,
        "max_steps": 60,
        "save_steps": 1000,
        "device": "cpu",
    }


def padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def test_padding_does_not_change_a_reward(fields: dict[str, Any]) -> None:
    model, _ = load_reward_model(RewardModelConfig(**fields))
    rows = [[4, 5, 6], [5], [6, 6, 4, 5, 4]]
    together = sequence_rewards(model, *padded(rows, pad=0))
    alone = [sequence_rewards(model, *padded([row], pad=0)).item() for row in rows]
    plain = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert together.tolist() == pytest.approx(alone, abs=1e-6)
    assert together.tolist() == pytest.approx(plain, abs=1e-6)


def test_eos_at_the_end_is_read_even_where_it_also_pads(fields: dict[str, Any]) -> None:
    model, _ = load_reward_model(RewardModelConfig(**fields))
    eos = 2
    model.config.pad_token_id = eos
    together = sequence_rewards(model, *padded([[4, 5, eos], [4, 5, 6, 4, eos]], pad=eos))
    model.config.pad_token_id = None
    alone = model(input_ids=torch.tensor([[4, 5, eos]])).logits.item()
    assert together[0].item() == pytest.approx(alone, abs=1e-6)


def test_encoders_pool_by_themselves() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    model = BertForSequenceClassification(config).eval()
    rows = [[4, 5, 6], [5, 7]]
    together = sequence_rewards(model, *padded(rows, pad=0))
    alone = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert together.tolist() == pytest.approx(alone, abs=1e-6)


def test_learns_to_order_held_out_pairs(fields: dict[str, Any]) -> None:
    result = run_rm(RewardModelConfig(**fields))
    assert result.eval_after["eval_accuracy"] >= 0.85
    assert result.eval_after["eval_accuracy"] > result.eval_before["eval_accuracy"] + 0.1
    assert result.eval_after["eval_rewards/margins"] > 0
    run = read_run(fields["output_dir"])
    for name in ("loss", "accuracy", "margin", "rewards/chosen", "rewards/rejected"):
        assert len(run.metrics[name]) == 61
    assert run.metrics["rewards/accuracies"][1:] == run.metrics["accuracy"][1:]
    saved = AutoModelForSequenceClassification.from_pretrained(result.model_dir)
    assert saved.config.num_labels == 1
    assert saved.config.pad_token_id == 0


def test_a_policy_gives_the_body(fields: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(3)
    policy, tokenizer = load_policy(RewardModelConfig(**fields))
    save_pretrained(policy, tokenizer, tmp_path / "policy")
    start = {**fields, "model": str(tmp_path / "policy"), "config": None, "tokenizer": None}
    model, _ = load_reward_model(RewardModelConfig(**start))
    body = policy.base_model.state_dict()
    for name, value in model.base_model.state_dict().items():
        assert torch.equal(value, body[name]), name


def test_margins_and_centering_reach_the_loss(fields: dict[str, Any]) -> None:
    path = Path(fields["train_data"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    losses = []
    for margin, center in ((0.0, 0.0), (3.0, 0.0), (0.0, 5.0)):
        path.write_text("".join(json.dumps({**row, "margin": margin}) + "\n" for row in rows))
        config = RewardModelConfig(
            **{
                **fields,
                "output_dir": fields["output_dir"] / f"{margin}-{center}",
                "max_steps": 1,
                "center_rewards_coefficient": center,
            }
        )
        losses.append(run_rm(config).eval_before["eval_loss"])
    assert losses[0] == pytest.approx(0.693, abs=0.2)
    assert losses[1] > losses[0] + 2
    assert losses[2] > losses[0]


def test_pairs_that_are_too_long_are_dropped_and_none_left_is_an_error(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run_rm(RewardModelConfig(**{**fields, "eval_size": 0, "max_length": 6, "max_steps": 1}))
    assert "of 160 rows, 128 are longer than max_length" in caplog.text
    with pytest.raises(DataError, match="of 120 rows, 120 are longer than max_length"):
        run_rm(RewardModelConfig(**{**fields, "output_dir": Path("unused"), "max_length": 2}))


def test_pair_without_any_token_is_named(fields: dict[str, Any]) -> None:
    Path(fields["train_data"]).write_text('{"prompt": "", "chosen": "a", "rejected": ""}\n')
    with pytest.raises(DataError, match=r"line 1: prompt and completion are both empty"):
        run_rm(RewardModelConfig(**{**fields, "eval_size": 0}))


def ranking_rows() -> list[dict[str, Any]]:
    shuffler = random.Random(1)
    rows = []
    for _ in range(80):
        words = ["".join(shuffler.choices("abx", k=shuffler.randint(3, 8))) for _ in range(4)]
        rows.append(
            {"prompt": "?", "completions": words, "scores": [word.count("x") for word in words]}
        )
    return rows


@pytest.mark.parametrize("loss", ["bradley_terry", "thurstone", "plackett_luce"])
def test_learns_from_rankings_and_of_ties_the_first_counts(
    loss: str, fields: dict[str, Any]
) -> None:
    rows = [
        {"prompt": "?", "completions": ["ab", "ba"], "scores": [1, 1]},  # says nothing
        *ranking_rows(),
    ]
    Path(fields["train_data"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"loss": loss, "eval_size": 20, "per_device_train_batch_size": 8, "max_steps": 40}
    result = run_rm(RewardModelConfig(**{**fields, **changes}))
    assert result.eval_after["eval_accuracy"] >= 0.85
    assert result.eval_after["eval_accuracy"] > result.eval_before["eval_accuracy"]


def batch_loss(fields: dict[str, Any], rows: list[dict[str, Any]], **changes: Any) -> float:
    """The loss of a whole data set as one batch, before training."""
    Path(fields["train_data"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"eval_size": 0, "max_steps": 1, "per_device_train_batch_size": len(rows), **changes}
    return run_rm(RewardModelConfig(**{**fields, **settings})).metrics["loss"]


def test_ranking_of_two_is_a_pair(fields: dict[str, Any]) -> None:
    pairs = [{"prompt": "?", "chosen": "xx", "rejected": "ab"}]
    rankings = [{"prompt": "?", "completions": ["ab", "xx"], "scores": [0.0, 2.0]}]
    centered = {"center_rewards_coefficient": 0.3}
    want = batch_loss(fields, pairs, **centered)
    for loss in ("bradley_terry", "plackett_luce"):
        out = {"output_dir": fields["output_dir"].with_name(loss)}
        assert batch_loss(fields, rankings, loss=loss, **centered, **out) == pytest.approx(want)


def test_a_pair_keeps_its_margin_in_every_loss(fields: dict[str, Any]) -> None:
    rows = [{"prompt": "?", "chosen": "xx", "rejected": "ab", "margin": 1.5}]
    losses = {
        loss: batch_loss(fields, rows, loss=loss, output_dir=fields["output_dir"].with_name(loss))
        for loss in ("bradley_terry", "plackett_luce", "thurstone")
    }
    assert losses["plackett_luce"] == pytest.approx(losses["bradley_terry"])
    assert min(losses.values()) > math.log(2.0) + 0.5


@pytest.mark.parametrize("loss", ["thurstone", "plackett_luce"])
def test_smoothing_that_a_loss_has_not_is_refused(loss: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only bradley_terry has it"):
        RewardModelConfig(**{**fields, "loss": loss, "label_smoothing": 0.1})


def test_length_that_explains_a_preference_teaches_less(fields: dict[str, Any]) -> None:
    longer_wins = [{"prompt": "?", "chosen": "abababab", "rejected": "ab"}]
    plain = batch_loss(fields, longer_wins)
    aware = batch_loss(
        fields,
        longer_wins,
        length_coefficient=0.5,
        output_dir=fields["output_dir"].with_name("aware"),
    )
    margin = -math.log(math.expm1(plain))  # of the untrained model
    assert aware == pytest.approx(math.log1p(math.exp(-(margin + 0.5 * 6))), rel=1e-4)
