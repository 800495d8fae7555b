"""How large the blocks of logits are: from the workspace, the vocabulary and the device.

Never from the number of tokens. The matrix products pick their algorithm by shape, so a block of
rows is always multiplied at full size, padded with zeros: that makes a token's result independent
of how many others there are. What it costs is up to one block of rows a call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIB = 1 << 20
DEFAULT_WORKSPACE_MIB = {"cpu": 64, "cuda": 512}
COLUMN_STEP = 1024
"""Blocks that do not hold the whole vocabulary hold a multiple of this many columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """What suits a kind of device.

    Attributes:
        min_rows, max_rows: Rows of a block of logits. On the CPU 256: fewer pay for packing the
            weight again and again, more leave the cache.
        grad_columns: Columns of a block in the backward pass, where the rows of a whole panel share
            one product for the weight's gradient.
    """

    min_rows: int
    max_rows: int
    grad_columns: int


_CPU = _Machine(min_rows=256, max_rows=256, grad_columns=4096)
_GPU = _Machine(min_rows=128, max_rows=1024, grad_columns=16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Block sizes of one call.

    Attributes:
        rows: R, rows that go through a matrix product together; always all of them.
        columns: W, columns of a block of logits in the forward pass.
        grad_columns: Likewise in the backward pass.
        panel_rows: Rows whose gradients are held at once in the backward pass; a multiple of R.
    """

    rows: int
    columns: int
    grad_columns: int
    panel_rows: int


def make_plan(
    device: torch.device, dtype: torch.dtype, vocab_size: int, workspace_mib: int | None
) -> Plan:
    """The block sizes whose logits fit into the workspace, or the smallest that are sensible.

    Args:
        device: Where the product runs.
        dtype: Of the logits in the workspace.
        vocab_size: V, of this process's part.
        workspace_mib: At least 0; None for the device's default.

    Raises:
        ValueError: If the workspace is negative.
    """
    if workspace_mib is None:
        workspace_mib = DEFAULT_WORKSPACE_MIB.get(device.type, DEFAULT_WORKSPACE_MIB["cpu"])
    if workspace_mib < 0:
        raise ValueError(f"workspace_mib is {workspace_mib}; it must be at least 0")
    machine = _GPU if device.type == "cuda" else _CPU
    num_logits = workspace_mib * MIB // dtype.itemsize
    rows = num_logits // vocab_size // machine.min_rows * machine.min_rows
    rows = min(machine.max_rows, max(machine.min_rows, rows))
    columns = min(vocab_size, max(COLUMN_STEP, num_logits // rows // COLUMN_STEP * COLUMN_STEP))
    grad_columns = min(columns, machine.grad_columns)
    panel_rows = max(rows, num_logits // grad_columns // rows * rows)
    return Plan(rows=rows, columns=columns, grad_columns=grad_columns, panel_rows=panel_rows)
