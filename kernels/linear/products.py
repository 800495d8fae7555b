"""The matrix products: which library multiplies, and in what precision it sums.

On x86 processors, torch gives float32 products to MKL, which leaves half of the vector width of
processors that are not Intel's unused. oneDNN, which torch carries for its other dtypes, does not:
on an AMD EPYC of 2024 it multiplies 2.6 times faster, and no slower elsewhere. So float32 blocks go
there, through the operators that torch's compiler emits for linear layers. Switching
`torch.backends.mkldnn.enabled` off switches this off.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor

# R rows of a block, W columns of it (rows of the weight), H hidden, Q rows of a panel.


@cache
def _has_onednn_linear() -> bool:
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def onednn_serves(tensor: Tensor) -> bool:
    """Whether products of this tensor go to oneDNN: from device and dtype, never from the shape."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and _has_onednn_linear()
        and bool(torch.backends.mkldnn.enabled)
    )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias through oneDNN; `weight` as it is, or from `onednn_packed`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def onednn_activated(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: tuple[str, str]
) -> Tensor:
    """activation(x @ weight.T + bias); the activation by oneDNN's name and algorithm."""
    name, algorithm = activation
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)
    return found


def onednn_gated(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    """(x @ weight.T + bias) * gate."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gate, weight, bias, "mul")
    return found


def onednn_packed(weight: Tensor, num_rows: int) -> Tensor:
    """A copy of a contiguous weight in oneDNN's own layout, for products with about `num_rows`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
    return packed


class BlockProducts:
    """All products with one block of the weight's rows; the weight is packed at most once.

    Args:
        weight_WH: The block.
        num_rows: R: every `logits` and `d_hidden` has that many.
    """

    def __init__(self, weight_WH: Tensor, num_rows: int) -> None:
        self._weight_WH = weight_WH
        self._num_rows = num_rows
        self._onednn = onednn_serves(weight_WH)
        self._packed: Tensor | None = None

    def logits(self, hidden_RH: Tensor, out_RW: Tensor | None) -> Tensor:
        """hidden @ weight.T in its own dtype; in `out_RW` if that is given and the library can."""
        if not self._onednn:
            return torch.mm(hidden_RH, self._weight_WH.t(), out=out_RW)
        if self._packed is None:
            self._packed = onednn_packed(self._weight_WH.contiguous(), self._num_rows)
        return onednn_product(hidden_RH, self._packed)

    def logits_float32(self, hidden_RH: Tensor) -> Tensor:
        """hidden @ weight.T in float32, whatever the dtype of the two."""
        return _product_float32(hidden_RH, self._weight_WH.t())

    def d_hidden(self, grad_RW: Tensor) -> Tensor:
        """grad @ weight."""
        if self._onednn:
            return onednn_product(grad_RW, self._weight_WH.t())
        return _product(grad_RW, self._weight_WH)

    def d_weight(self, grad_QW: Tensor, hidden_QH: Tensor) -> Tensor:
        """grad.T @ hidden: [W, H]."""
        if self._onednn:
            # The other way round: oneDNN is a third slower with the long side in front.
            return onednn_product(hidden_QH.t(), grad_QW.t()).t()
        return _product(grad_QW.t(), hidden_QH)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, with its float32 sums kept unrounded where the library can give them."""
    return _product_float32(a, b) if a.is_cuda and a.dtype.itemsize == 2 else torch.mm(a, b)


def _product_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, whatever the dtype of a and b."""
    if a.is_cuda and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())
