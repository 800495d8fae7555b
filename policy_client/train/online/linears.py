"""Linear layers of a policy on the CPU, through the faster of the libraries that torch carries.

A small policy's step is mostly products of float32 matrices, which torch gives to MKL; on
processors that are not Intel's, oneDNN multiplies about twice as fast (see
`rewardsvc.kernels.linear.products`). Inside `fast_linears` a model's plain linear layers go there,
forward and backward; outside it the model is untouched. Layers that are more than their weight
(quantised, sharded, patched by somebody else) are left as they are.

Legend: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rewardsvc.kernels.linear.products import onednn_packed, onednn_product, onednn_serves

FORWARD = "forward"


@contextmanager
def fast_linears(model: nn.Module, *, packed_rows: int | None = None) -> Iterator[None]:
    """Inside, float32 linear layers of `model` on the CPU run in oneDNN where there is one.

    A backward pass may come later. Where activations are computed again in it, layers must be then
    what they were in the forward pass: such models are left alone while gradients are on.

    Args:
        model: Any module.
        packed_rows: Weights are put into the library's own order once, for products with so many
            rows, and not at every call. They must not change inside, and get no gradient. None to
            leave them.
    """
    changed: list[nn.Linear] = []
    if not (torch.is_grad_enabled() and _computes_again(model)):
        changed = [module for module in model.modules() if _is_plain(module)]
    for module in changed:
        packed = None
        if packed_rows is not None:
            weight = module.weight.detach().contiguous()
            packed = onednn_packed(weight, packed_rows)
        module.__dict__[FORWARD] = partial(_forward, module, packed)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__[FORWARD]


def are_fast(module: nn.Module) -> bool:
    """Whether this is inside `fast_linears` of a model that `module` is of, and changes it."""
    return any(FORWARD in one.__dict__ for one in module.modules() if isinstance(one, nn.Linear))


def _computes_again(model: nn.Module) -> bool:
    """Whether a module of transformers drops activations and computes them again."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(module) is nn.Linear
        and FORWARD not in module.__dict__
        and type(module.weight) is nn.Parameter
        and onednn_serves(module.weight)
    )


def _forward(module: nn.Linear, packed: Tensor | None, x: Tensor) -> Tensor:
    """What calling the layer is, but for rounding."""
    if not _serves(x):
        return nn.Linear.forward(module, x)
    if packed is not None:
        return onednn_product(x, packed, module.bias)
    if not torch.is_grad_enabled():
        return onednn_product(x, module.weight, module.bias)
    outputs: Tensor = _Linear.apply(x, module.weight, module.bias)  # type: ignore[no-untyped-call]
    return outputs


def _serves(x: Tensor) -> bool:
    """Whether this call is of float32 as it stands: not under autocast, nor being traced."""
    return (
        onednn_serves(x)
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Linear(torch.autograd.Function):
    """A linear layer with all three products in oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        return onednn_product(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        d_x = d_weight = d_bias = None
        if needs_x:
            d_x = onednn_product(grad, weight_OI.t())
        if needs_weight:
            grad_NO = grad.reshape(-1, grad.shape[-1])
            x_NI = x.reshape(-1, x.shape[-1])
            # oneDNN is up to a third faster with the shorter side in front.
            if len(weight_OI) > weight_OI.shape[1]:
                d_weight = onednn_product(x_NI.t(), grad_NO.t()).t()
            else:
                d_weight = onednn_product(grad_NO.t(), x_NI.t())
        if needs_bias:
            d_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return d_x, d_weight, d_bias
