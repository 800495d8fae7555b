"""Float32 linear layers of hosted models on x86 CPUs, through oneDNN.

torch gives float32 products to MKL, which leaves half of the vector width of processors that are
not Intel's unused. oneDNN, which torch carries for its other dtypes, does not. Which of the two is
faster here is measured once, on a product of a common shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewardsvc.kernels.linear.products import onednn_packed, onednn_product, onednn_serves

TRIAL_ROWS, TRIAL_WIDTH = 256, 512
TRIALS = 7
WORTH = 1.15
"""oneDNN is taken if it is this many times as fast: packed weights cost memory."""

_PACKED = "_onednn_packed"


def speed_up(model: nn.Module) -> int:
    """Lets the float32 linear layers of a model compute through oneDNN, where that is faster.

    Only for inference: the layers have no backward afterwards. Each keeps its weight as it is, and
    a packed copy of it.

    Returns:
        How many layers were changed.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    layers = [layer for layer in layers if onednn_serves(layer.weight)]
    if not layers or not _is_faster():
        return 0
    for layer in layers:
        packed = onednn_packed(layer.weight.detach(), TRIAL_ROWS)
        setattr(layer.weight, _PACKED, packed)
        # Of the weights, not of the layer: that would be a cycle, and a model that is replaced must
        # be gone at once, not with some later round of the garbage collector.
        layer.forward = partial(_forward, layer.weight, layer.bias)  # type: ignore[method-assign]
    return len(layers)


def packed_weight(layer: nn.Module) -> Tensor | None:
    """What `speed_up` prepared of a layer's weight; None if it has not changed the layer."""
    found = getattr(getattr(layer, "weight", None), _PACKED, None)
    return found if "forward" in layer.__dict__ else None


def is_prepared(weight: Tensor) -> bool:
    """Whether `speed_up` has prepared this weight."""
    return hasattr(weight, _PACKED)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """x @ weight.T + bias through oneDNN; None if this weight was not prepared for it."""
    packed = getattr(weight, _PACKED, None)
    if packed is None or x.dtype != torch.float32:
        return None
    return onednn_product(x, packed, bias)


def _forward(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    # A mode that watches functions (canonical shapes, tracing) must see the product as one.
    if torch._C._len_torch_function_stack() or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    found = product(x, weight, bias)
    return F.linear(x, weight, bias) if found is None else found


@cache
def _is_faster() -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRIAL_ROWS, TRIAL_WIDTH, generator=generator)
    weight = torch.randn(TRIAL_WIDTH, TRIAL_WIDTH, generator=generator)
    packed = onednn_packed(weight, TRIAL_ROWS)
    usual: list[float] = []
    other: list[float] = []
    for _ in range(TRIALS):
        usual.append(_seconds(lambda: F.linear(x, weight)))
        other.append(_seconds(lambda: onednn_product(x, packed)))
    return median(usual) > WORTH * median(other)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
