"""Feed-forward layers with activations inside the products compute what they computed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rewardsvc.engine import cpu_feedforward, cpu_linear
from rewardsvc.engine.cpu_feedforward import MIN_BLOCK_ROWS, speed_up_feed_forward
from rewardsvc.kernels.linear.products import onednn_serves

pytestmark = pytest.mark.skipif(
    not onednn_serves(torch.zeros(1)), reason="torch has no oneDNN linear layers here"
)

SIZES = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "vocab_size": 50}


@pytest.fixture(autouse=True)
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured depends on the machine; the tests are of what follows."""
    monkeypatch.setattr(cpu_linear, "_is_faster", lambda: True)
    monkeypatch.setattr(cpu_feedforward, "BLOCK_BYTES", 1)  # the least number of rows


def made(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3)
    return model.requires_grad_(False)


def sped_up(model: nn.Module) -> int:
    cpu_linear.speed_up(model)
    return speed_up_feed_forward(model)


@pytest.mark.parametrize(
    ("config", "num_changed"),
    [
        (transformers.LlamaConfig(num_attention_heads=2, **SIZES), 2),
        (transformers.LlamaConfig(num_attention_heads=2, mlp_bias=True, **SIZES), 2),
        (
            transformers.Gemma2Config(
                num_attention_heads=2, num_key_value_heads=2, head_dim=16, **SIZES
            ),
            2,
        ),
        (transformers.GPTNeoXConfig(num_attention_heads=2, **SIZES), 2),
        (transformers.BertConfig(num_attention_heads=2, **SIZES), 2),
        (transformers.BertConfig(num_attention_heads=2, hidden_act="relu", **SIZES), 2),
        (transformers.BertConfig(num_attention_heads=2, hidden_act="gelu_new", **SIZES), 2),
        # Nothing that oneDNN can apply.
        (transformers.BertConfig(num_attention_heads=2, hidden_act="mish", **SIZES), 0),
    ],
    ids=lambda value: (
        f"{value.model_type} {getattr(value, 'hidden_act', '')}"
        if hasattr(value, "model_type")
        else str(value)
    ),
)
@torch.inference_mode()
def test_models_compute_what_they_did(config: Any, num_changed: int) -> None:
    model = made(config)
    ids = torch.randint(0, 50, (3, 50))
    assert ids.numel() > MIN_BLOCK_ROWS, "several blocks, of which one is not full"
    expected = model(input_ids=ids).last_hidden_state
    assert sped_up(model) == num_changed
    found = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Odd(nn.Module):
    """Named like a feed-forward layer, and none."""

    def __init__(self, *, doubled: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.doubled = doubled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x))) * (2 if self.doubled else 1)


@pytest.mark.parametrize("doubled", [False, True])
@torch.inference_mode()
def test_a_layer_that_computes_something_else_is_left_alone(doubled: bool) -> None:
    torch.manual_seed(0)
    layer = Odd(doubled=doubled)
    x = torch.randn(5, 8)
    expected = layer(x)
    assert sped_up(layer) == (not doubled)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_layers_whose_products_are_not_onednns_are_left_alone() -> None:
    assert speed_up_feed_forward(Odd(doubled=False)) == 0
    assert sped_up(Odd(doubled=False).to(torch.bfloat16)) == 0


@torch.inference_mode()
def test_modes_that_watch_functions_see_the_activation() -> None:
    layer = Odd(doubled=False)
    assert sped_up(layer) == 1
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watching():
        layer(torch.randn(3, 8))
    assert F.gelu in seen


def test_activations_are_told_apart_whatever_the_weights_are() -> None:
    torch.manual_seed(0)
    for scale in (1e-3, 1.0, 30.0):
        layer = Odd(doubled=False)
        with torch.no_grad():
            layer.fc1.weight.mul_(scale)
        cpu_linear.speed_up(layer)
        found = cpu_feedforward._recognised(layer)
        assert found is not None
        assert found.activation == ("gelu", "none")


def test_a_model_that_nobody_holds_is_gone_at_once() -> None:
    model = made(transformers.BertConfig(num_attention_heads=2, **SIZES))
    weights = [weakref.ref(weight) for weight in model.encoder.parameters()]
    assert sped_up(model) == 2
    gc.disable()  # without the garbage collector, that is: it comes late to large models
    try:
        del model
        assert not any(weight() is not None for weight in weights)
    finally:
        gc.enable()
