"""Activation checkpointing: the same gradients bit for bit, and far fewer activations kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_policies import digit_config, digit_policy, digit_reward, rollout_of, tiny_policy
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client.train.online import CallableReward, run_online
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.recompute import check_recomputable, recomputed
from rewardsvc.policy_client.train.online.sequences import Sequences

RAGGED = Sequences.of(
    rollout_of(
        [[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8], [9, 4]],
        [[8, 1, 3, 7, 7], [8], [4, 4, 4], [9, 9, 1, 2]],
    ),
    pad_id=0,
)
LONG = Sequences.of(rollout_of([[5] * 24] * 4, [[7] * 24] * 4), pad_id=0)


def policy(family: str) -> Any:
    """With dropout, where it has any; GPT-2 hands its cache to layers by position."""
    if family != "gpt2":
        return tiny_policy(family, attention_dropout=0.1)
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=40, n_positions=64)
    )


def log_likelihood(sequences: Sequences) -> Callable[[Any], Tensor]:
    return lambda model: PolicyForward(model)(sequences).logprobs.square().sum()


def value(model: Any) -> Tensor:
    torch.manual_seed(1)
    critic = Critic(model.base_model)
    nn.init.normal_(critic.head.weight)
    return critic(RAGGED).square().sum()


def plain(model: Any) -> Tensor:
    """As supervised fine-tuning and reward models call a model: without a cache of ours."""
    ids = torch.tensor([[5, 6, 7, 8], [9, 4, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    return model(input_ids=ids, attention_mask=mask).logits.square().sum()


def gradients(model: Any, loss: Callable[[Any], Tensor], again: bool) -> list[Tensor | None]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)  # for dropout
    with recomputed(model) if again else nullcontext():
        found = loss(model)
    found.backward()
    return [None if one.grad is None else one.grad.clone() for one in model.parameters()]


LOSSES = {"policy": log_likelihood(RAGGED), "critic": value, "plain": plain}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_the_same_bit_for_bit(family: str, loss: str, training: bool):
    model = policy(family).train(training)
    wanted = gradients(model, LOSSES[loss], again=False)
    found = gradients(model, LOSSES[loss], again=True)
    assert any(one is not None and bool(one.abs().sum() > 0) for one in wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)


def kept_bytes(model: Any, loss: Callable[[Any], Tensor], again: bool) -> int:
    """Bytes of activations, weights apart, that wait for the backward pass."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        recomputed(model) if again else nullcontext(),
    ):
        found = loss(model)
    del found
    return sum(one.untyped_storage().nbytes() for one in kept.values())


def test_far_fewer_activations_are_kept():
    model = tiny_policy("llama", num_hidden_layers=6)
    loss = log_likelihood(LONG)
    assert kept_bytes(model, loss, True) < 0.35 * kept_bytes(model, loss, False)


def test_a_model_is_itself_again_afterwards():
    model = tiny_policy()
    with recomputed(model):
        assert any("forward" in one.__dict__ for one in model.modules())
    assert not any("forward" in one.__dict__ for one in model.modules())


def test_a_copy_made_meanwhile_is_of_its_own():
    model = tiny_policy()
    other = copy.deepcopy(model)
    with recomputed(model):
        log_likelihood(RAGGED)(other).backward()
    assert all(one.grad is None for one in model.parameters())


def test_models_without_such_layers_are_refused():
    class Odd(BertForSequenceClassification):
        pass

    model: PreTrainedModel = Odd(
        BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    )
    model.bert.encoder = nn.Identity()
    with pytest.raises(ConfigError, match="no layers of a bert model"):
        check_recomputable(model, with_prompts=False)


def test_models_with_sliding_windows_are_refused_where_prompts_are_shared():
    model = tiny_policy("mistral", sliding_window=4)
    check_recomputable(model, with_prompts=False)
    with pytest.raises(ConfigError, match="SlidingWindow"):
        check_recomputable(model, with_prompts=True)


def test_a_run_learns_the_same_bit_for_bit(tmp_path: Path):
    finals = []
    for flag in (False, True):
        config = digit_config(
            tmp_path / str(flag), max_steps=2, num_epochs=2, activation_checkpointing=flag
        )
        result = run_online("ppo", config, reward=CallableReward(digit_reward), **digit_policy())
        finals.append(load_file(result.model_dir / "model.safetensors"))
    without, with_it = finals
    assert all(torch.equal(without[name], with_it[name]) for name in without)
