"""What this machine could do at most: measured matrix products, measured memory, parameters.

A forward pass does two operations a parameter and token, attention's own products left out (they
grow with the length, and are small beside it below a few thousand tokens). It reads each weight
once a batch. So with T tokens a batch and b bytes a weight, the machine can do at most

    min(GEMM rate, bandwidth * 2 T / b) / (2 * parameters)   tokens a second.

Source: Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model for
    Multicore Architectures", CACM 52(4), 2009. The ceilings are measured, not the data sheet's.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GEMM_SIZE_CPU = 1024
GEMM_SIZE_GPU = 8192
COPY_BYTES_CPU = 256 * 2**20
COPY_BYTES_GPU = 4 * 2**30
"""Much larger than any cache."""

ROUNDS = 7

EMBEDDINGS = (
    "embed_tokens",
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "wte",
    "wpe",
    "embed_in",
    "tok_embeddings",
    "lm_head",
    "embed_out",
)
"""Tensors that are looked up, or left out where a reward is read: they multiply nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Measured ceilings.

    Attributes:
        device: "cpu", "cuda:0".
        dtype: Of the products.
        gemm_flops: Operations a second of a large matrix product.
        bandwidth: Bytes a second, read and written, of a large copy.
    """

    device: str
    dtype: str
    gemm_flops: float
    bandwidth: float


def measure(device: str, dtype: str, *, num_threads: int = 0, small: bool = False) -> Machine:
    """Measures this machine; takes a second or two. Needs torch.

    Args:
        device: "cpu", "cuda:0".
        dtype: "float32", "bfloat16", "float16".
        num_threads: On the CPU; 0 leaves torch's own choice.
        small: Smaller matrices, for tests.
    """
    import torch

    if num_threads:
        torch.set_num_threads(num_threads)
    on_gpu = device != "cpu"
    size = GEMM_SIZE_GPU if on_gpu else GEMM_SIZE_CPU
    num_bytes = COPY_BYTES_GPU if on_gpu else COPY_BYTES_CPU
    if small:
        size, num_bytes = size // 8, num_bytes // 64
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        gemm_s = _fastest(lambda: torch.mm(a, b), wait)
        copy_s = _fastest(lambda: target.copy_(source), wait)
    return Machine(
        device=device,
        dtype=dtype,
        gemm_flops=2 * size**3 / gemm_s,
        bandwidth=2 * num_bytes / copy_s,
    )


def _fastest(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """Seconds of the fastest round: a ceiling is what the machine does when nothing disturbs it."""
    work()
    wait()
    best = math.inf
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - began)
    return best


def matrix_parameters(folder: Path) -> int:
    """Parameters of a checkpoint's matrices, embeddings left out; 0 if it has no safetensors."""
    return sum(
        math.prod(shape)
        for file in folder.glob("*.safetensors")
        for name, shape in _shapes(file)
        if len(shape) == 2 and not any(part in name for part in EMBEDDINGS)
    )


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Source: https://github.com/huggingface/safetensors#format"""
    with file.open("rb") as data:
        (header_bytes,) = struct.unpack("<Q", data.read(8))
        header: dict[str, Any] = json.loads(data.read(header_bytes))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, entry["shape"]


def attainable_tokens(machine: Machine, num_parameters: float, tokens_per_batch: float) -> float:
    """Tokens a second at most; see the module's text."""
    weight_bytes = 4 if machine.dtype == "float32" else 2
    flops = min(machine.gemm_flops, machine.bandwidth * 2 * tokens_per_batch / weight_bytes)
    return flops / (2 * num_parameters)
