"""SFT learns the completions, weighs every token alike, and resumes exactly."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.data.tokenize import pack, pad_right, tokenize_pair
from rewardsvc.policy_client.train.models import load_policy
from rewardsvc.policy_client.train.run_log import read_run
from rewardsvc.policy_client.train.sft import SftConfig, completion_loss, run_sft

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """A task that a tiny model learns in seconds: say the letters again, in capitals."""
    character_tokenizer("abcdABCD>").save_pretrained(tmp_path / "tokenizer")
    shuffler = random.Random(0)
    words = ["".join(shuffler.choices("abcd", k=shuffler.randint(1, 4))) for _ in range(96)]
    rows = [{"prompt": f"{word}>", "completion": word.upper()} for word in words]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "config": TINY,
        "tokenizer": str(tmp_path / "tokenizer"),
        "train_data": str(data),
        "eval_size": 16,
        "output_dir": tmp_path / "run",
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 16,
        "max_steps": 60,
        "save_steps": 1000,
        "device": "cpu",
    }


def test_loss_and_accuracy_equal_a_loop_over_unpadded_rows(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, tokenizer = load_policy(SftConfig(**fields))
    model = model.double()
    pairs = [tokenize_pair(tokenizer, p, c) for p, c in (("ab>", "AB"), ("d>", ""), ("abcd>", "C"))]
    batch = pad_right(pairs, pad_token_id=0, device=torch.device("cpu"))
    loss, num_correct = completion_loss(model, batch)
    expected, correct = 0.0, 0
    for pair in pairs:
        logits = model(input_ids=torch.tensor([pair.input_ids])).logits[0]
        for at in range(pair.num_prompt_tokens, len(pair.input_ids)):
            row = logits[at - 1].float()
            expected -= F.log_softmax(row, dim=-1)[pair.input_ids[at]].item()
            correct += int(row.argmax()) == pair.input_ids[at]
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert num_correct == correct


def test_prompt_tokens_get_no_gradient_of_their_own(fields: dict[str, Any]) -> None:
    model, tokenizer = load_policy(SftConfig(**fields))
    batches = []
    for prompt in ("ab>", "cd>"):
        pair = tokenize_pair(tokenizer, prompt, "A")
        batches.append(pad_right([pair], pad_token_id=0, device=torch.device("cpu")))
    loss, _ = completion_loss(model, batches[0])
    loss.backward()
    head = model.get_output_embeddings().weight.grad
    # Two hidden states span the head's gradient: those before A and before EOS.
    assert torch.linalg.matrix_rank(head) == 2


def test_step_does_not_depend_on_how_it_is_cut_into_micro_batches(fields: dict[str, Any]) -> None:
    weights = []
    for micro, accumulation in ((16, 1), (4, 4)):
        config = SftConfig(
            **{
                **fields,
                "output_dir": fields["output_dir"] / str(micro),
                "per_device_train_batch_size": micro,
                "gradient_accumulation_steps": accumulation,
                "group_by_length": False,
                "max_steps": 3,
                "max_grad_norm": 1e9,
            }
        )
        result = run_sft(config)
        weights.append(AutoModelForCausalLM.from_pretrained(result.model_dir).state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=2e-5)


def test_learns_held_out_rows_and_saves_what_transformers_loads(fields: dict[str, Any]) -> None:
    result = run_sft(SftConfig(**fields))
    assert result.eval_after["eval_loss"] < 0.5 * result.eval_before["eval_loss"]
    assert result.eval_after["eval_mean_token_accuracy"] > 0.8
    run = read_run(fields["output_dir"])
    assert run.steps == tuple(range(61))
    for name in ("loss", "grad_norm", "learning_rate", "num_tokens", "mean_token_accuracy"):
        assert run.metrics[name][-1] == run.metrics[name][-1], name
    model = AutoModelForCausalLM.from_pretrained(result.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(result.model_dir)
    ids = torch.tensor([tokenizer.encode("dcb>")])
    out = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :]) == "DCB<eos>"


def test_resumed_run_ends_where_the_uninterrupted_one_does(fields: dict[str, Any]) -> None:
    config = {**fields, "max_steps": 6, "save_steps": 3, "warmup_steps": 2}
    straight = run_sft(SftConfig(**{**config, "output_dir": fields["output_dir"] / "straight"}))
    # The schedule must know the whole run, so the first life is cut short, not configured short.
    where = fields["output_dir"] / "resumed"
    run_sft(SftConfig(**{**config, "output_dir": where}))
    for path in (where / "final", where / "checkpoint-00000006"):
        path.rename(path.with_name(f"lost-{path.name}"))
    resumed = run_sft(SftConfig(**{**config, "output_dir": where, "resume": True}))
    assert resumed.metrics == straight.metrics
    mine = AutoModelForCausalLM.from_pretrained(resumed.model_dir).state_dict()
    other = AutoModelForCausalLM.from_pretrained(straight.model_dir).state_dict()
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name
    run = read_run(where)
    assert run.steps == tuple(range(7))
    assert run.metrics["num_tokens"] == pytest.approx(
        read_run(fields["output_dir"] / "straight").metrics["num_tokens"], nan_ok=True
    )


def test_resume_without_a_checkpoint_starts_afresh(fields: dict[str, Any]) -> None:
    result = run_sft(SftConfig(**{**fields, "max_steps": 1, "resume": True}))
    assert result.num_steps == 1
    assert result.eval_before


def test_fresh_run_does_not_mix_with_the_checkpoints_of_another(fields: dict[str, Any]) -> None:
    run_sft(SftConfig(**{**fields, "max_steps": 1}))
    with pytest.raises(ConfigError, match=r"output_dir: .*checkpoint-00000001.*resume: true"):
        run_sft(SftConfig(**{**fields, "max_steps": 2}))


def test_epochs_count_whole_passes(fields: dict[str, Any]) -> None:
    del fields["max_steps"]
    result = run_sft(SftConfig(**{**fields, "num_train_epochs": 2}))
    assert result.num_steps == 10  # two passes over the 80 rows that are left, 16 a step
    assert result.metrics["epoch"] == 2.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_length": 2}, "max_length"),
        ({"model": "./nowhere", "config": None}, "nowhere"),
        ({"tokenizer": "./nowhere"}, "tokenizer.*nowhere"),
        ({"config": {"model_type": "nonesuch"}}, "nonesuch"),
        ({"config": {**TINY, "vocab_size": 5}}, "embeddings for 5"),
        ({"device": "quantum"}, "quantum"),
        ({"eval_size": 96}, "no rows"),
    ],
)
def test_what_cannot_be_used_is_named(
    fields: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    if change.get("max_length"):
        rows = [{"prompt": "abcd>", "completion": "ABCD"}] * 2
        Path(fields["train_data"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        change = {**change, "eval_size": 0}
    with pytest.raises(ConfigError, match=words):
        run_sft(SftConfig(**{**fields, **change}))


def test_rows_that_are_too_long_are_cut_or_dropped_and_counted(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "a>", "completion": "A"},
        {"prompt": "ab>", "completion": "ABABAB"},
        {"prompt": "abcdabcd>", "completion": "A"},
    ]
    Path(fields["train_data"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_sft(
        SftConfig(
            **{
                **fields,
                "eval_size": 0,
                "max_length": 5,
                "max_steps": 1,
                "per_device_train_batch_size": 2,
            }
        )
    )
    assert "2 of 3 rows" in caplog.text
    assert "1 dropped" in caplog.text
    assert result.metrics["num_tokens"] == 4 + 5


def test_gradient_that_is_not_finite_stops_the_run(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "cross_entropy", lambda logits, *_, **__: logits.sum() * torch.nan)
    with pytest.raises(FloatingPointError, match=r"step 1: .*learning_rate"):
        run_sft(SftConfig(**{**fields, "eval_size": 0}))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt_neox"])
def test_packed_loss_and_gradient_equal_the_padded_ones(
    model_type: str, fields: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    shape = {**TINY, "model_type": model_type, "num_key_value_heads": 2}
    config = SftConfig(**{**fields, "config": shape})
    model, tokenizer = load_policy(config)
    texts = (("ab>", "AB"), ("d>", ""), ("abcd>", "CACA"), ("c>", "D"))
    pairs = [tokenize_pair(tokenizer, p, c) for p, c in texts]
    found = []
    for batch in (
        pad_right(pairs, pad_token_id=0, device=torch.device("cpu")),
        pack(pairs, device=torch.device("cpu")),
    ):
        model.zero_grad()
        loss, num_correct = completion_loss(model, batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((loss.item(), num_correct, gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-5)


def test_packing_learns_as_padding_does(fields: dict[str, Any]) -> None:
    padded = run_sft(SftConfig(**{**fields, "max_steps": 10}))
    packed = run_sft(
        SftConfig(
            **{
                **fields,
                "max_steps": 10,
                "packing": True,
                "output_dir": fields["output_dir"].with_name("packed"),
            }
        )
    )
    assert packed.eval_after["eval_loss"] == pytest.approx(padded.eval_after["eval_loss"], rel=1e-3)


def test_model_that_mixes_packed_rows_is_refused(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    whole = LlamaForCausalLM.forward

    def blind(self: Any, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return whole(self, *args, **kwargs)  # positions go on, so rows look like one

    monkeypatch.setattr(LlamaForCausalLM, "forward", blind)
    with pytest.raises(ConfigError, match="packing: true, but a llama model"):
        run_sft(SftConfig(**{**fields, "packing": True}))
