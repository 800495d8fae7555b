"""Adapters: they alone learn; switched off they are the base model; merged, a plain checkpoint."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_tokenizer, write_causal_lm, write_reward_model
from tiny_policies import digit_config, digit_policy, digit_reward, rollout_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.checkpoint import load_checkpoint, save_checkpoint
from rewardsvc.policy_client.train.config_base import LoraSection, TrainConfigBase
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.lora import adapters_off, add_adapters, copy_of, has_adapters
from rewardsvc.policy_client.train.models import (
    load_policy,
    load_process_reward_model,
    load_reward_model,
    save_pretrained,
)
from rewardsvc.policy_client.train.online import CallableReward, OnlineResult, run_online
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.reference import LocalReference
from rewardsvc.policy_client.train.online.saving import Saver
from rewardsvc.policy_client.train.online.sequences import Sequences
from rewardsvc.policy_client.train.preference import DpoConfig, run_preference
from rewardsvc.policy_client.train.run_log import read_run
from rewardsvc.policy_client.train.selection import OnlineDpoConfig, run_selection

LORA = {"r": 4, "alpha": 8}
IDS = torch.tensor([[3, 12, 14, 9, 20], [5, 30, 11, 13, 2]])
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}


def base_config(folder: Path, **fields: Any) -> TrainConfigBase:
    return TrainConfigBase.model_validate(
        {"model": str(folder), "output_dir": folder / "run", "device": "cpu", "lora": LORA} | fields
    )


def adapted(folder: Path, family: str = "llama", **fields: Any) -> PreTrainedModel:
    """A policy whose adapters have moved, as if it had learned."""
    write_causal_lm(folder, family)
    model, _ = load_policy(base_config(folder, **fields))
    move_adapters(model)
    return model


def move_adapters(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize(
    ("load", "head"),
    [
        (load_policy, set()),
        (load_reward_model, {"score.weight"}),
        (load_process_reward_model, {"score.weight", "score.bias"}),
    ],
)
def test_adapters_and_new_heads_alone_learn(
    load: Callable[[TrainConfigBase], Any], head: set[str], tmp_path: Path
) -> None:
    model, _ = load(base_config(write_causal_lm(tmp_path / "base")))
    move_adapters(model)
    model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.sum().backward()
    learned = {name for name, one in model.named_parameters() if one.grad is not None}
    adapters = {name for name in learned if ".lora_A." in name or ".lora_B." in name}
    assert len(adapters) == 2 * 2 * 7  # A and B of seven linear modules in each of two layers
    assert learned - adapters == head
    assert all(one.grad is None or one.grad.abs().max() > 0 for one in model.parameters())


def test_what_is_new_in_an_encoder_learns_whole(tmp_path: Path) -> None:
    folder = write_causal_lm(tmp_path / "base", "bert")  # it has no pooler
    model, _ = load_reward_model(base_config(folder))
    whole = {
        name for name, one in model.named_parameters() if one.requires_grad and "lora" not in name
    }
    parts = ("bert.pooler.dense", "classifier")
    assert whole == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}


def test_named_modules_alone_are_adapted(tmp_path: Path) -> None:
    model = adapted(tmp_path, lora={**LORA, "target_modules": ["q_proj", "v_proj"]})
    learned = [name for name, one in model.named_parameters() if one.requires_grad]
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in learned} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["no_such"], "no_such"),
        (["embed_tokens"], "only linear"),
        (["lm_head"], "tied"),
        (["score"], "learned whole"),
    ],
)
def test_unfit_targets_are_refused(targets: list[str], message: str, tmp_path: Path) -> None:
    folder = write_causal_lm(tmp_path, tie_word_embeddings=True)
    config = base_config(folder, lora={**LORA, "target_modules": targets})
    load = load_reward_model if targets == ["score"] else load_policy
    with pytest.raises(ConfigError, match=f"lora.target_modules.*{message}"):
        load(config)


def test_without_peft_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = base_config(write_causal_lm(tmp_path))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"rewardsvc\[lora\]"):
        load_policy(config)


def test_adapters_on_adapters_are_refused(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    with pytest.raises(ConfigError, match="adapters already"):
        add_adapters(model, LoraSection(), learned=())


def test_switched_off_it_is_the_base_model_and_on_again_itself(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    before = logits_of(model)
    learned = [name for name, one in model.named_parameters() if one.requires_grad]
    with adapters_off(model):
        assert torch.equal(logits_of(model), logits_of(base))
    assert torch.equal(logits_of(model), before)
    assert not torch.allclose(before, logits_of(base), atol=1e-2)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == learned


def test_log_probs_of_the_online_reference_are_those_of_the_base_model(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    rollout = rollout_of([[3, 4], [5, 6, 7]], [[8, 9, 10], [11]])
    sequences = Sequences.of(rollout, pad_id=0)
    reference = LocalReference(model, temperature=0.7, max_tokens=64)
    found = reference.logprobs(rollout, sequences)
    wanted = PolicyForward(base, temperature=0.7)(sequences).logprobs
    assert torch.equal(found, wanted.detach())
    now = PolicyForward(model, temperature=0.7)(sequences).logprobs
    assert not torch.allclose(now, wanted, atol=1e-2)


def test_critic_and_copies_share_the_frozen_weights_only(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    for other in (copy_of(model), Critic.from_policy(model)):
        mine = {one.data_ptr() for one in model.parameters() if not one.requires_grad}
        for name, parameter in other.named_parameters():
            assert (parameter.data_ptr() in mine) == (not parameter.requires_grad), name


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_merged_checkpoint_computes_what_the_adapted_model_does(
    family: str, tied: bool, tmp_path: Path
) -> None:
    write_causal_lm(tmp_path / "base", family, tie_word_embeddings=tied)
    model, tokenizer = load_policy(base_config(tmp_path / "base"))
    move_adapters(model)
    before = logits_of(model)
    folder = save_pretrained(model, tokenizer, tmp_path / "final")
    plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert not has_adapters(plain)
    torch.testing.assert_close(logits_of(plain.eval()), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits_of(model), before)  # saving left it alone
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert not torch.allclose(logits_of(original), before, atol=1e-2)


def test_merged_reward_model_has_its_head(tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(base_config(write_reward_model(tmp_path / "base")))
    move_adapters(model)
    before = logits_of(model)
    folder = save_pretrained(model, tokenizer, tmp_path / "final")
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(logits_of(plain), before, rtol=1e-4, atol=1e-5)


def test_adapters_of_a_bfloat16_model_are_float32_and_merge_into_bfloat16(tmp_path: Path) -> None:
    model = adapted(tmp_path / "base", dtype="bfloat16")
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}
    folder = save_pretrained(model, tiny_tokenizer(), tmp_path / "final")
    assert {one.dtype for one in load_file(folder / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_checkpoints_hold_adapters_alone_and_fit_one_base_model(tmp_path: Path) -> None:
    model = adapted(tmp_path / "base")

    def save(step: int) -> Path:
        objects: dict[str, Any] = {"modules": {"model": model}, "optimizers": {}, "schedulers": {}}
        return save_checkpoint(tmp_path / "run", step, **objects, state={}, keep=3)

    path = save(1)
    assert all(".lora_" in name for name in load_file(path / "model.safetensors"))
    fresh, _ = load_policy(base_config(tmp_path / "base"))
    load_checkpoint(path, modules={"model": fresh}, optimizers={}, schedulers={})
    assert torch.equal(logits_of(fresh), logits_of(model))
    other, _ = load_policy(base_config(write_causal_lm(tmp_path / "other", seed=5)))
    with pytest.raises(ValueError, match="another model"):
        load_checkpoint(path, modules={"model": other}, optimizers={}, schedulers={})
    plain, _ = load_policy(base_config(tmp_path / "base", lora=None))
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(path, modules={"model": plain}, optimizers={}, schedulers={})


def dpo_config(folder: Path, **changes: Any) -> DpoConfig:
    shuffler = random.Random(0)

    def word(share_of_x: float) -> str:
        length = shuffler.randint(3, 8)
        return "".join("x" if shuffler.random() < share_of_x else "a" for _ in range(length))

    rows = [{"prompt": "?", "chosen": word(0.8), "rejected": word(0.2)} for _ in range(120)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    character_tokenizer("abx?").save_pretrained(folder / "tokenizer")
    fields = {
        "config": TINY,
        "tokenizer": str(folder / "tokenizer"),
        "train_data": str(folder / "pairs.jsonl"),
        "eval_size": 40,
        "output_dir": folder / "run",
        "learning_rate": 2e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 16,
        "max_steps": 20,
        "save_steps": 1000,
        "device": "cpu",
        "lora": LORA,
    }
    return DpoConfig.model_validate(fields | changes)


def test_dpo_learns_to_order_held_out_pairs(tmp_path: Path) -> None:
    result = run_preference("dpo", dpo_config(tmp_path))
    # Before the first step policy and reference are one, but for rounding.
    assert abs(result.eval_before["eval_rewards/margins"]) < 1e-5
    assert result.eval_after["eval_rewards/accuracies"] >= 0.9


def test_dpo_resumes_exactly_with_dropout(tmp_path: Path) -> None:
    lora = {**LORA, "dropout": 0.2}
    whole = run_preference(
        "dpo", dpo_config(tmp_path, max_steps=6, lora=lora, output_dir=tmp_path / "whole")
    )
    run_preference("dpo", dpo_config(tmp_path, max_steps=3, lora=lora))
    resumed = run_preference("dpo", dpo_config(tmp_path, max_steps=6, lora=lora, resume=True))
    assert_same_weights(whole.model_dir, resumed.model_dir)
    assert dict(whole.eval_after) == dict(resumed.eval_after)


def assert_same_weights(one: Path, other: Path) -> None:
    found, wanted = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def spread_policy() -> dict[str, Any]:
    """A policy with weights large enough for what is frozen to be of use."""
    given = digit_policy()
    with torch.no_grad():
        for parameter in given["policy"].parameters():
            if parameter.dim() > 1:
                parameter.mul_(15.0)
    return given


def train(algorithm: str, folder: Path, **fields: Any) -> tuple[OnlineResult, PreTrainedModel]:
    given = spread_policy()
    config = digit_config(folder, lora=LORA, **fields)
    result = run_online(algorithm, config, reward=CallableReward(digit_reward), **given)
    return result, given["policy"]


def test_grpo_learns_and_leaves_the_base_alone(tmp_path: Path) -> None:
    base = {name: one.clone() for name, one in spread_policy()["policy"].state_dict().items()}
    fields: Mapping[str, Any] = {"learning_rate": 3e-2, "kl_coef": 0.01, "max_steps": 30}
    result, policy = train("grpo", tmp_path, **fields)
    rewards = read_run(tmp_path).metrics["reward"]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    assert result.metrics["kl"] > 0.0
    now = {name.replace(".base_layer", ""): one for name, one in policy.state_dict().items()}
    assert all(torch.equal(now[name], one) for name, one in base.items())


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_online_resumes_exactly(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {
        "max_steps": 4,
        "num_epochs": 2,
        "num_minibatches": 2,
        "kl_coef": 0.05,
        "save_micro_steps": 1,
    }
    whole, _ = train(algorithm, tmp_path / "whole", **fields)
    original, saves = Saver.save, 0

    def save(self: Saver, *args: Any, **kwargs: Any) -> None:
        nonlocal saves
        original(self, *args, **kwargs)
        saves += 1
        if saves == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Saver, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(algorithm, tmp_path / "cut", **fields)
    resumed, _ = train(algorithm, tmp_path / "cut", **fields, resume=True)
    assert_same_weights(whole.model_dir, resumed.model_dir)


def test_online_dropout_is_refused(tmp_path: Path) -> None:
    config = digit_config(tmp_path, lora={**LORA, "dropout": 0.1})
    with pytest.raises(ConfigError, match=r"lora\.dropout: 0\.1"):
        run_online("grpo", config, reward=CallableReward(digit_reward), **digit_policy())


@pytest.mark.parametrize("every", [None, 2])
def test_online_dpo_refers_to_the_model_without_adapters(every: int | None, tmp_path: Path) -> None:
    rows = [{"prompt": f"{digit}=", "answer": str(digit)} for digit in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, **changes: Any) -> Any:
        config = OnlineDpoConfig.model_validate(
            {
                "model": "passed by the caller",
                "train_data": str(tmp_path / "rows.jsonl"),
                "output_dir": tmp_path / name,
                "per_device_train_batch_size": 10,
                "learning_rate": 1e-2,
                "lr_scheduler_type": "constant",
                "max_steps": 6,
                "save_steps": 3,
                "max_new_tokens": 3,
                "num_generations": 8,
                "max_length": 16,
                "reference_update_steps": every,
                "device": "cpu",
                "lora": LORA,
            }
            | changes
        )
        reward = CallableReward(digit_reward)
        return run_selection("online_dpo", config, reward=reward, **digit_policy())

    whole = run("whole")
    run("cut", max_steps=3)
    resumed = run("cut", resume=True)
    assert_same_weights(whole.model_dir, resumed.model_dir)
    assert whole.metrics["rewards/margins"] != 0.0
