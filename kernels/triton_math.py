"""Device functions and launch settings that the Triton kernels share."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NO_KEY = tl.constexpr(-0x8000000000000000)

FP_FUSION = {"enable_fp_fusion": True}
"""Given at every launch: its default differs between releases of Triton. No kernel depends on where
the compiler contracts; those that could lose digits subtract before they multiply."""


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launches a kernel on the device of its first argument, which need not be the current one."""
    with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
        kernel[grid](*args, **constants, **FP_FUSION)


@triton.jit
def tanh(x):
    """tanh in float32, within 2 units of the last place; libdevice has none for the interpreter.

    Near 0 the quotient of exponentials cancels; there, x + x^3 P(x^2), with P fitted at Chebyshev
    points of [0, 0.6^2] (relative error 8e-8).
    """
    w = x * x
    p = 0.021116213873028755 - 0.006276387255638838 * w
    p = 0.13332924246788025 + w * (-0.053875137120485306 + w * p)
    near = x + x * (w * (-0.3333333134651184 + w * p))
    e = tl.exp2(tl.abs(x) * -2.0 * LOG2E)
    far = 1.0 - 2.0 * e / (1.0 + e)
    return tl.where(tl.abs(x) < 0.6, near, tl.where(x < 0.0, -far, far))


@triton.jit
def squash(y, cap, scale_over_cap, SOFTCAP: tl.constexpr):
    """Raw logits (bias included) to y of `transform.py`."""
    if SOFTCAP:
        y = cap * tanh(y * scale_over_cap)
    return y


@triton.jit
def pack_keys(y, ids):
    """int64 keys of `tiles/topk.py`."""
    bits = (y + 0.0).to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) | (0xFFFFFFFF - ids.to(tl.int64))
