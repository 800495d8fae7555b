"""Scores that do not depend, bit for bit, on what else is in the batch.

Theory of operation. Floating-point sums depend on their order, and kernels choose the order by the
shape of what they are given; so every number must come out of a call whose shape, and whose place
in it, follow from the sample alone.

* Matrix products run in blocks of `block_rows` rows, the last one filled up: a row is always
  computed by the same kernel. Where in the block it lies makes no difference to the order in which
  its own products are summed; that is a property of the kernels, not a promise, so it is tried at
  load. On CPUs, many blocks are one call where that has come to the same bits (`blocks`).
* Attention runs in blocks of `BLOCK` positions, counted from a sequence's first token, over the
  keys of all positions up to the block's end, filled up to whole blocks; whether a token is
  computed for one sequence or for many, its block has the same shape, and it the same place in it.
* Element-wise functions compute the last few numbers of a thread's share by other instructions on
  CPUs, with other last bits. `Canonical` cuts their input so that no share has such an end.
* All else that a transformer does (norms, sums over a row, embeddings) works on rows by themselves.

Whether that holds for a model on this machine is tried when it is loaded (`probe`); if it does not,
samples are computed alone, which is slow and right. So are models with experts: how many
tokens an expert gets depends on the batch.

Shape letters: H query heads, K key heads, T packed tokens, D head size.

Source: the idea of fixed shapes is from "Defeating Nondeterminism in LLM Inference"
(https://thinkingmachines.ai/blog/defeating-nondeterminism-in-llm-inference/), which does it for
CUDA by kernels of its own; the shared prefixes and the CPU's ends of vectors are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rewardsvc.engine import cpu_linear
from rewardsvc.engine.packing.blocks import by_blocks
from rewardsvc.engine.packing.layer import Layer, Mask
from rewardsvc.engine.packing.plan import PackingError, Plan
from rewardsvc.engine.packing.prefixes import Node
from rewardsvc.engine.packing.segments import (
    as_bias,
    attend,
    empty_output,
    joined,
    rows_between,
    sink_share,
)

BLOCK = 64
"""Positions of a block of attention."""

GRAIN = 32768
"""Fewest numbers that torch gives to a thread of its own (at::internal::GRAIN_SIZE)."""

VECTOR = 128
"""Every loop over vectors takes a number of elements that divides this."""


def block_rows(device_type: str, dtype: torch.dtype) -> int:
    """Rows of a block of matrix products: the fewest that are nearly as fast as many."""
    if device_type == "cuda":
        return 512
    return 128 if dtype == torch.float32 else 256


def attention(query: Tensor, key: Tensor, value: Tensor, layer: Layer, plan: Plan) -> Tensor:
    """[H, T, D] of query [H, T, D], key and value [K, T, D]; rows of no node are 0."""
    out = empty_output(query, value)
    used = plan.nodes[-1].stop
    out[:, used:] = 0
    for node in plan.nodes:
        if layer.mask.causal:
            _by_blocks(query, key, value, layer, node, out, plan)
        else:
            # Bidirectional tokens see their whole sequence, and sequences share nothing: its own
            # length is shape enough.
            rows = slice(node.start, node.stop)
            positions = plan.positions[rows]
            allowed = None
            if layer.mask.window is not None:
                allowed = layer.mask.allowed(positions, positions)
            own_query, own_key, own_value = (
                part[:, rows].contiguous() for part in (query, key, value)
            )
            out[:, rows] = _found(own_query, own_key, own_value, layer, allowed)
    return out


def _by_blocks(
    query: Tensor, key: Tensor, value: Tensor, layer: Layer, node: Node, out: Tensor, plan: Plan
) -> None:
    stop = node.position_stop
    first_block, last_block = node.position // BLOCK, (stop - 1) // BLOCK
    first_key = _first_key(first_block, layer.mask)
    seen = rows_between(node, first_key, stop)
    length = (last_block + 1) * BLOCK - first_key
    keys, values = (_padded(joined(part, seen), 0, length) for part in (key, value))
    before = node.position - first_block * BLOCK
    own = slice(node.start, node.stop)
    num_rows = (last_block + 1 - first_block) * BLOCK
    queries = _padded(query[:, own], before, num_rows)
    for block in range(first_block, last_block + 1):
        rows = slice((block - first_block) * BLOCK, (block - first_block + 1) * BLOCK)
        start = _first_key(block, layer.mask) - first_key
        columns = slice(start, (block + 1) * BLOCK - first_key)
        found = _found(
            queries[:, rows],
            keys[:, columns],
            values[:, columns],
            layer,
            _bias(block, layer.mask, query, plan),
        )
        low, high = max(rows.start, before), min(rows.stop, before + node.stop - node.start)
        target = node.start - before
        out[:, low + target : high + target] = found[:, low - rows.start : high - rows.start]


def _first_key(block: int, mask: Mask) -> int:
    """Where the keys of a block begin: a whole number of blocks."""
    if mask.window is None:
        return 0
    return max(0, block * BLOCK - mask.window + 1) // BLOCK * BLOCK


def _bias(block: int, mask: Mask, like: Tensor, plan: Plan) -> Tensor:
    """What is added to a block's products; the same for all of its sequences and layers."""
    device, dtype = like.device, like.dtype
    memo = ("bias", block, mask)
    if memo not in plan.memo:
        queries = torch.arange(block * BLOCK, (block + 1) * BLOCK, device=device)
        keys = torch.arange(_first_key(block, mask), (block + 1) * BLOCK, device=device)
        plan.memo[memo] = as_bias(mask.allowed(queries, keys), dtype)
    found: Tensor = plan.memo[memo]
    return found


def _found(
    query: Tensor, key: Tensor, value: Tensor, layer: Layer, allowed: Tensor | None
) -> Tensor:
    found, denominator = attend(query, key, value, layer, allowed)
    if layer.sinks is not None:
        found = found * sink_share(denominator, layer.sinks)[..., None].to(found.dtype)
    return found


def _padded(values: Tensor, before: int, length: int) -> Tensor:
    """[X, length, D]: values [X, T, D] with zeros around them, in memory of their own."""
    padded = values.new_zeros(len(values), length, values.shape[-1])
    padded[:, before : before + values.shape[1]] = values
    return padded


class Canonical(TorchFunctionMode):
    """Inside this context, torch computes rows of matrix products and elements canonically.

    Args:
        rows: Of a block of matrix products.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            return _PRODUCTS[func](self._rows, *args, **kwargs)
        if func in _OTHER_PRODUCTS:
            raise PackingError(f"it uses {func.__name__}, whose order of sums is not known")
        if func in _ELEMENTWISE and args[0].device.type == "cpu":
            return _elementwise(func, args[0], *args[1:], **kwargs)
        if func in (torch.logsumexp, Tensor.logsumexp):
            return _logsumexp(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(rows: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    num_rows = len(flat)
    if num_rows % rows:
        flat = F.pad(flat, (0, 0, 0, -num_rows % rows))

    def product(block: Tensor) -> Tensor:
        found = cpu_linear.product(block, weight, bias)
        if found is not None:
            return found
        if bias is None:
            return torch.mm(block, weight.t())
        return torch.addmm(bias, block, weight.t())

    kernel = (len(weight), weight.stride(), bias is None, cpu_linear.is_prepared(weight))
    out = by_blocks(product, flat, rows, ("linear", *kernel, weight.data_ptr()))
    return out[:num_rows].reshape(*x.shape[:-1], len(weight))


def _addmm(rows: int, bias: Tensor, x: Tensor, weight: Tensor, **kw: Any) -> Tensor:
    if kw or bias.dim() != 1:
        raise PackingError("it uses addmm in a form whose order of sums is not known")
    return _linear(rows, x, weight.t(), bias)


def _matmul(rows: int, x: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    if weight.dim() == 2:
        found = _linear(rows, x, weight.t())
        return found if out is None else out.copy_(found)
    if x.shape[-1] != 1:  # rotary embeddings multiply columns by rows: there is nothing to sum
        raise PackingError("it multiplies matrices in batches, whose order of sums is not known")
    return torch.matmul(x, weight)


_PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.mm: _matmul,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
}

_OTHER_PRODUCTS: frozenset[Any] = frozenset(
    {torch.bmm, torch.baddbmm, torch.einsum, F.bilinear, F.conv1d, F.scaled_dot_product_attention}
)

_ELEMENTWISE: frozenset[Any] = frozenset(
    getattr(home, name)
    for home, names in {
        F: ("silu", "gelu", "sigmoid", "tanh", "softplus", "elu", "mish", "logsigmoid"),
        torch: ("exp", "log", "log1p", "expm1", "tanh", "sigmoid", "cos", "sin", "erf", "rsqrt"),
        Tensor: ("exp", "log", "log1p", "expm1", "tanh", "sigmoid", "cos", "sin", "erf", "rsqrt"),
        torch.special: ("entr", "expit"),
    }.items()
    for name in names
)
"""Functions of single numbers whose last bits differ between vectors and what is left of them."""


def _elementwise(func: Callable[..., Tensor], x: Tensor, *args: Any, **kw: Any) -> Tensor:
    if _has_no_ends(x.numel()) and x.is_contiguous():
        return func(x, *args, **kw)
    kw.pop("inplace", None)  # the result is a new tensor
    flat = x.contiguous().flatten()
    whole = GRAIN * torch.get_num_threads()
    out = torch.empty_like(flat)
    start = 0
    for size in (whole, GRAIN):
        while len(flat) - start >= size:
            out[start : start + size] = func(flat[start : start + size], *args, **kw)
            start += size
    rest = flat[start:]
    if len(rest):
        out[start:] = func(F.pad(rest, (0, -len(rest) % VECTOR)), *args, **kw)[: len(rest)]
    return out.view(x.shape)


def _has_no_ends(numel: int) -> bool:
    """Whether every thread's share of an element-wise loop is a whole number of vectors."""
    num_threads = min(torch.get_num_threads(), -(-numel // GRAIN)) or 1
    share = -(-numel // num_threads)
    return share % VECTOR == 0 and numel % VECTOR == 0


def _logsumexp(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """As torch, from parts that are canonical themselves."""
    top = x.amax(dim, keepdim=True)
    total = _elementwise(torch.exp, x - top).sum(dim, keepdim=True)
    total = _elementwise(torch.log, total) + top
    return total if keepdim else total.squeeze(dim)
