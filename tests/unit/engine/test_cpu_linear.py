"""Linear layers through oneDNN compute what they computed, and only where they may."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rewardsvc.engine import cpu_linear
from rewardsvc.kernels.linear.products import onednn_serves

pytestmark = pytest.mark.skipif(
    not onednn_serves(torch.zeros(1)), reason="torch has no oneDNN linear layers here"
)


@pytest.fixture(autouse=True)
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured depends on the machine; the tests are of what follows."""
    monkeypatch.setattr(cpu_linear, "_is_faster", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (7, 96), (300, 96), (2, 5, 96), (0, 96)])
@torch.inference_mode()
def test_values_are_those_of_torch(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 33, bias=bias)
    x = torch.randn(shape)
    want = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert cpu_linear.speed_up(nn.Sequential(layer)) == 1
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-5)


def test_only_plain_float32_layers_are_changed() -> None:
    class Own(nn.Linear):
        pass

    layers = nn.ModuleList([Own(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16), nn.LayerNorm(8)])
    assert cpu_linear.speed_up(layers) == 0
    assert not any("forward" in layer.__dict__ for layer in layers)


def test_slower_here_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "_is_faster", lambda: False)
    layer = nn.Linear(8, 8)
    assert cpu_linear.speed_up(layer) == 0
    assert "forward" not in layer.__dict__


@torch.inference_mode()
def test_modes_that_watch_functions_see_the_product() -> None:
    layer = nn.Linear(8, 8)
    cpu_linear.speed_up(layer)
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watching():
        layer(torch.randn(3, 8))
    assert F.linear in seen


@torch.inference_mode()
def test_state_of_a_changed_layer_is_its_own() -> None:
    layer = nn.Linear(8, 4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    cpu_linear.speed_up(layer)
    after = layer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_trial_itself_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cpu_linear._is_faster.cache_clear()
    assert cpu_linear._is_faster() in (True, False)
