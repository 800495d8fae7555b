"""How batches for ONNX Runtime are put together."""

from __future__ import annotations

from collections.abc import Sequence

from rewardsvc.engine.shape import PaddedShape
from rewardsvc.engine.types import Encoded

CPU_MIN_FILL = 0.95
CPU_BATCH_TOKENS = 512
"""Measured (benchmarks/bench_onnx.py): on a CPU core one row at a time is as fast as several, for
its matrices fill the vector units already; two cores gain a tenth from a few rows. Beyond about 500
tokens the activations leave the second-level cache, and each token costs more."""


class CpuShape(PaddedShape):
    """Few rows of nearly equal length, however large the budget is."""

    def __init__(self) -> None:
        super().__init__(CPU_MIN_FILL)

    def select(self, window: Sequence[Encoded], budget: int) -> list[int]:
        """See `BatchShape`; a batch is at most `CPU_BATCH_TOKENS`, or one item."""
        return super().select(window, min(budget, CPU_BATCH_TOKENS))
