"""Linear layers through oneDNN: the same values and gradients, and no trace afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rewardsvc.kernels.linear.products import onednn_serves
from rewardsvc.policy_client.train.online.linears import fast_linears

pytestmark = pytest.mark.skipif(
    not onednn_serves(torch.ones(1)), reason="torch has no oneDNN on this machine"
)


def _layers(*, bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40, bias=bias), nn.Tanh(), nn.Linear(40, 8, bias=bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24)])
def test_values_and_gradients_are_those_of_the_layers(shape, bias):
    plain = _layers(bias=bias)
    fast = copy.deepcopy(plain)
    x = torch.randn(shape)
    found_x, wanted_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    with fast_linears(fast):
        found = fast(found_x)
    wanted = plain(wanted_x)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found_x.grad, wanted_x.grad, atol=1e-6, rtol=1e-5)
    for mine, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_packed_weights_serve_any_number_of_rows(rows):
    layers = _layers(bias=True)
    x = torch.randn(rows, 1, 24)
    with torch.no_grad(), fast_linears(layers, packed_rows=16):
        found = layers(x)
    torch.testing.assert_close(found, layers(x).detach(), atol=1e-6, rtol=1e-5)


def test_a_frozen_layer_gets_no_gradient_and_passes_it_on():
    layers = _layers(bias=True)
    layers[2].requires_grad_(False)
    with fast_linears(layers):
        layers(torch.randn(3, 24)).sum().backward()
    assert layers[2].weight.grad is None
    assert layers[0].weight.grad.abs().sum() > 0


def test_layers_are_used_inside_and_themselves_again_afterwards(monkeypatch):
    layers = _layers(bias=True)

    def unwanted(*_):
        raise AssertionError("the layer's own forward was called")

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", unwanted)
        with fast_linears(layers):
            layers(torch.randn(3, 24))
    with pytest.raises(RuntimeError, match="enough"), fast_linears(layers):
        raise RuntimeError("enough")
    assert all("forward" not in module.__dict__ for module in layers)


class _Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_is_more_than_its_weight_stays_as_it_is():
    torch.manual_seed(0)
    subclass, patched, double = _Scaled(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).double()
    patched.forward = lambda x: x + 1
    x = torch.randn(2, 4)
    with torch.no_grad(), fast_linears(nn.ModuleList([subclass, patched, double])):
        assert torch.equal(subclass(x), 2 * nn.functional.linear(x, subclass.weight, subclass.bias))
        assert torch.equal(patched(x), x + 1)
        assert double(x.double()).dtype == torch.float64
    assert "forward" in patched.__dict__


def test_autocast_decides_the_precision():
    layers = _layers(bias=True)
    with torch.autocast("cpu", torch.bfloat16), fast_linears(layers):
        assert layers(torch.randn(3, 24)).dtype == torch.bfloat16


def test_models_that_compute_activations_again_keep_their_layers_while_gradients_are_on():
    layers = _layers(bias=True)
    layers.gradient_checkpointing = True
    with fast_linears(layers):
        assert not any("forward" in module.__dict__ for module in layers)
    with torch.no_grad(), fast_linears(layers):
        assert "forward" in layers[0].__dict__
