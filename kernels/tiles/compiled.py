"""Tile operations compiled by torch's own compiler: one read of each tile, vectorised.

Compiling takes seconds, so as little as possible is compiled: rows are always `row_tile`, columns
are symbolic, numbers are tensors. What is left to compile for is the dtype, the tile, whether there
is a bias and whether there is a soft-cap. Each is a function of its own to the compiler, which
stops compiling a function after 8 variants and would go on in plain torch without a word. Fixed
rows also hold the batch invariance: every row is always computed by the same code at one shape.

Without a working C++ compiler the first call warns once, and this process goes on in plain torch.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from rewardsvc.kernels.tiles.eager import EagerTiles, accumulate_tile, grad_tile

MIN_COLUMNS = 64
"""Narrower tiles run in plain torch: they are cheap, and sizes 0 and 1 would compile anew."""


class _Compiled:
    """A tile function, compiled for each variant when first used; plain once compiling failed."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._plain = function
        self._compiled: dict[tuple[object, ...], Callable[..., None]] = {}
        self._lock = threading.Lock()

    def __call__(self, z_RW: Tensor, *args: Any, **kwargs: Any) -> None:
        """Runs the function on one tile."""
        if z_RW.shape[1] < MIN_COLUMNS or CompilerState.broken:
            self._plain(z_RW, *args, **kwargs)
            return
        wides = (z_RW, kwargs["bias_W"], kwargs.get("out_RW"))
        for wide in wides:
            if wide is not None:
                torch._dynamo.maybe_mark_dynamic(wide, wide.dim() - 1)
        errors = _compile_errors()
        given = tuple(None if wide is None else wide.dtype for wide in wides)
        variant = (*given, kwargs["squash"] is None, len(z_RW), torch.is_inference_mode_enabled())
        with self._lock:
            if variant not in self._compiled:
                self._compiled[variant] = torch.compile(_copy(self._plain), dynamic=False)
            compiled = self._compiled[variant]
        try:
            compiled(z_RW, *args, **kwargs)
        except errors as error:
            CompilerState.give_up(error)
            self._plain(z_RW, *args, **kwargs)


def _copy(function: Callable[..., None]) -> Callable[..., None]:
    """The same function with code of its own, by which the compiler counts variants."""
    plain = cast("FunctionType", function)
    copy = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy


class CompilerState:
    """Whether this process's compiler has failed.

    Attributes:
        broken: Set by the first failure; never unset but by tests.
    """

    broken = False

    @classmethod
    def give_up(cls, error: Exception) -> None:
        """Notes that compiling failed, and warns the first time."""
        if not cls.broken:
            cls.broken = True
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                "the log-prob kernels could not be compiled and run several times slower in plain"
                f" torch; install a C++ compiler such as g++ ({type(error).__name__}: {reason})",
                RuntimeWarning,
                stacklevel=2,
            )


@cache
def _compile_errors() -> tuple[type[Exception], ...]:
    """Loads torch's compiler, and gives the errors that it raises where compiling fails."""
    with warnings.catch_warnings():
        # The compiler's own imports use what torch has deprecated; no caller can mend that.
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._inductor.compile_fx  # noqa: F401
        from torch._dynamo.exc import BackendCompilerFailed
        from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return BackendCompilerFailed, CppCompileError, InvalidCxxCompiler


class CompiledTiles(EagerTiles):
    """`TileOps` compiled for the CPU."""

    row_tile = 64

    _accumulate_tile = staticmethod(_Compiled(accumulate_tile))
    _grad_tile = staticmethod(_Compiled(grad_tile))


class WideCompiledTiles(CompiledTiles):
    """The same for blocks of 256 rows: what a call costs beside its work is then a fourth."""

    row_tile = 256
