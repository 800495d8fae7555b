"""What all autograd functions of the kernels share."""

from __future__ import annotations

from typing import Any

import torch


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`; torch leaves it without types."""
    return function.apply(*args)  # type: ignore[no-untyped-call]
