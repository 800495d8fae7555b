"""Which implementation serves a call: decided by device, vocabulary and caller.

Never from the number of rows: a row must not change when others join it.
"""

from __future__ import annotations

import os
from enum import StrEnum
from functools import cache
from importlib.util import find_spec

from torch import Tensor

from rewardsvc.kernels.tiles.base import TileOps

MIN_COMPILED_VOCAB = 8192
"""Smaller vocabularies run in plain torch on the CPU, where compiling would take longer than a
whole training run on a toy model."""

BACKEND_VARIABLE = "REWARDSVC_KERNELS_BACKEND"
"""Environment variable that stands in for a `backend=` that is not given."""


class Backend(StrEnum):
    """An implementation of the kernels.

    TRITON: Triton kernels; CUDA and ROCm, or any device under Triton's interpreter.
    COMPILED: Plain torch, compiled for the CPU.
    EAGER: Plain torch in small chunks; any device.
    """

    TRITON = "triton"
    COMPILED = "compiled"
    EAGER = "eager"


@cache
def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter (`TRITON_INTERPRET=1` at first use)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def choose_backend(tensor: Tensor, vocab_size: int, backend: str | None = None) -> Backend:
    """The backend that serves a call.

    Args:
        tensor: One of the inputs; its device decides, and float64 is for plain torch alone.
        vocab_size: V; 0 where there is none.
        backend: Forces one; None lets the environment and then the device decide.

    Raises:
        ValueError: If the name is unknown, or the backend cannot serve the tensor.
    """
    name = backend or os.environ.get(BACKEND_VARIABLE) or None
    if name is None:
        if tensor.dtype.itemsize == 8:
            return Backend.EAGER
        if tensor.is_cuda:
            return Backend.TRITON if _has_triton() else Backend.EAGER
        on_cpu = tensor.device.type == "cpu"
        return Backend.COMPILED if on_cpu and vocab_size >= MIN_COMPILED_VOCAB else Backend.EAGER
    try:
        chosen = Backend(name)
    except ValueError:
        known = ", ".join(Backend)
        raise ValueError(f"backend is {name!r}; known: {known}") from None
    if chosen is Backend.TRITON:
        if not _has_triton():
            raise ValueError("backend is 'triton', and triton is not installed; use 'eager'")
        if not (tensor.is_cuda or interpreting()):
            raise ValueError(
                f"backend is 'triton', and the tensor is on {tensor.device}; move it to a GPU,"
                " or set TRITON_INTERPRET=1 before the first import to run the interpreter"
            )
        if tensor.dtype.itemsize == 8:
            raise ValueError("backend is 'triton', and the tensor is float64; use 'eager'")
    if chosen is Backend.COMPILED and tensor.device.type != "cpu":
        raise ValueError(
            f"backend is 'compiled', and the tensor is on {tensor.device}; use 'eager'"
        )
    return chosen


@cache
def tile_ops(backend: Backend, *, wide: bool = False) -> TileOps:
    """The tile operations of a backend; modules are imported when they are first wanted.

    Args:
        backend: Which.
        wide: Whether the caller's blocks have rows enough for the larger tile, where there are two.
    """
    if backend is Backend.TRITON:
        from rewardsvc.kernels.tiles.triton_ops import TritonTiles

        return TritonTiles()
    if backend is Backend.COMPILED:
        from rewardsvc.kernels.tiles.compiled import CompiledTiles, WideCompiledTiles

        return WideCompiledTiles() if wide else CompiledTiles()
    from rewardsvc.kernels.tiles.eager import EagerTiles, WideEagerTiles

    return WideEagerTiles() if wide else EagerTiles()
