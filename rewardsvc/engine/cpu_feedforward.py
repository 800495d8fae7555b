"""Feed-forward layers of hosted models on x86 CPUs: activations inside the products.

Between its two products, a feed-forward layer makes numbers that are several times as wide as the
model. With a batch of 3,000 tokens they do not fit into any cache, and activation and gate read
and write them once more each. oneDNN applies both to the part of a product that it has in
registers. Where the layer's second product follows, both run in blocks of rows, so that what is
between them stays in the cache.

Layers are known by the names of their parts, which many models of transformers have in common. What
such a layer computes is not taken on trust: it is compared when the model is loaded, and one that
computes anything else is left alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rewardsvc.engine.cpu_linear import packed_weight
from rewardsvc.engine.packing.blocks import by_blocks
from rewardsvc.engine.packing.plan import active_plan
from rewardsvc.kernels.linear.products import onednn_activated, onednn_gated, onednn_product

BLOCK_BYTES, MIN_BLOCK_ROWS = 2**21, 128
"""Size of what is between the products of a block of rows: it stays in the cache. Fewer rows than
that are slower for a product by itself."""

ACTIVATIONS = (("swish", ""), ("gelu", "none"), ("gelu", "tanh"), ("relu", ""))
"""What oneDNN can apply: name and algorithm."""

GATED = ("gate_proj", "up_proj", "down_proj")
PLAIN = (("dense_h_to_4h", "dense_4h_to_h"), ("lin1", "lin2"), ("fc1", "fc2"))
UP_ONLY = ("dense",)
"""Names of a layer's linear parts; all that it has. The activation is the rest."""

TRIAL_ROWS, TRIAL_SPREAD = 16, 3.0
"""Of the comparison: rows, and standard deviation of what the activation is applied to."""

SAME = 1e-5
"""Largest difference, relative to the largest number, that is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeedForward:
    """A layer's weights.

    Attributes:
        up: Widens.
        gate: Widens, and is activated in place of `up`, which is multiplied by it; or None.
        down: Narrows; None if the module ends with the activation.
        activation: One of `ACTIVATIONS`.
    """

    up: nn.Linear
    gate: nn.Linear | None
    down: nn.Linear | None
    activation: tuple[str, str]

    @property
    def kind(self) -> Hashable:
        """Tells layers apart, by kernels and weights."""
        shapes = (self.up.out_features, self.down and self.down.out_features)
        place = self.up.weight.data_ptr()
        biases = [
            part is not None and part.bias is not None for part in (self.up, self.gate, self.down)
        ]
        return ("feed forward", *shapes, *biases, self.gate is None, self.activation, place)

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return max(MIN_BLOCK_ROWS, BLOCK_BYTES // (4 * self.up.out_features))

    def __call__(self, x: Tensor) -> Tensor:
        """[R, width] of x [R, D]."""
        up, up_bias = packed_weight(self.up), self.up.bias
        assert up is not None
        if self.gate is None:
            wide = onednn_activated(x, up, up_bias, self.activation)
        else:
            gate = packed_weight(self.gate)
            assert gate is not None
            activated = onednn_activated(x, gate, self.gate.bias, self.activation)
            wide = onednn_gated(x, up, up_bias, activated)
        if self.down is None:
            return wide
        down = packed_weight(self.down)
        assert down is not None
        return onednn_product(wide, down, self.down.bias)


def speed_up_feed_forward(model: nn.Module) -> int:
    """Lets the feed-forward layers of a model compute as this module's text says.

    Only for inference, and only where `cpu_linear.speed_up` has changed the linear layers.

    Returns:
        How many layers were changed.
    """
    num_changed = 0
    for module in model.modules():
        found = _recognised(module)
        if found is not None:
            # Weakly, for the same reason as in `cpu_linear`: a replaced model must be gone at once.
            module.forward = partial(_forward, found, weakref.ref(module))
            num_changed += 1
    return num_changed


def _recognised(module: nn.Module) -> FeedForward | None:
    if "forward" in module.__dict__:  # somebody was here before
        return None
    parts = {
        name for name, child in module.named_children() if any(True for _ in child.parameters())
    }
    for names in ((*GATED,), *PLAIN, UP_ONLY):
        if parts != set(names):
            continue
        layers = [getattr(module, name) for name in names]
        if any(packed_weight(layer) is None for layer in layers):
            return None
        gate = layers.pop(0) if names == GATED else None
        down = layers[1] if len(layers) > 1 else None
        return _activated_like(module, up=layers[0], gate=gate, down=down)
    return None


@torch.inference_mode()
def _activated_like(
    module: nn.Module, *, up: nn.Linear, gate: nn.Linear | None, down: nn.Linear | None
) -> FeedForward | None:
    """The layer with the activation that gives the module's own numbers, if there is one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRIAL_ROWS, up.in_features, generator=generator)
    # Far enough from 0 that activations differ from each other.
    x *= TRIAL_SPREAD / (gate or up)(x).std().clamp_min(torch.finfo(x.dtype).tiny)
    try:
        expected = module(x)
    except Exception:  # it wants something else than one tensor
        return None
    if not isinstance(expected, Tensor):
        return None
    for activation in ACTIVATIONS:
        found = FeedForward(up=up, gate=gate, down=down, activation=activation)
        numbers = found(x)
        if numbers.shape == expected.shape:
            worst = float((numbers - expected).abs().max())
            if worst <= SAME * float(expected.abs().max()):
                return found
    return None


def _forward(
    layer: FeedForward, owner: weakref.ref[nn.Module], x: Tensor, *more: object, **kw: object
) -> Tensor:
    if more or kw or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return _original(owner, x, *more, **kw)
    flat = x.reshape(-1, x.shape[-1])
    rows = layer.block_rows if layer.down is not None else max(1, len(flat))
    if torch._C._len_torch_function_stack():
        # Somebody watches. For scores that do not depend on the batch, whole blocks are as good as
        # what the watcher would make of the layer.
        plan = active_plan()
        if plan is None or plan.block_rows is None or len(flat) % plan.block_rows:
            return _original(owner, x)
        rows = max(rows // plan.block_rows, 1) * plan.block_rows
        kind = layer.kind
        blocks = [
            by_blocks(layer, block, plan.block_rows, kind) for block in torch.split(flat, rows)
        ]
    else:
        blocks = [layer(block) for block in torch.split(flat, rows)]
    found = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return found.view(*x.shape[:-1], found.shape[-1])


def _original(owner: weakref.ref[nn.Module], *args: object, **kw: object) -> Tensor:
    module = owner()
    assert module is not None, "a layer of a model that is gone was called"
    found: Tensor = type(module).forward(module, *args, **kw)
    return found
