"""How large the blocks of logits are: from the workspace, the vocabulary and the device.

Never from the number of tokens. The matrix products pick their algorithm by shape, so a block of
rows is always multiplied at full size, padded with zeros: that makes a token's result independent
of how many others there are. What it costs is up to one block of rows a call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIB = 1 << 20
DEFAULT_WORKSPACE_MIB = {"cpu": 128, "cuda": 512}
COLUMN_STEP = 1024
"""Blocks that do not hold the whole vocabulary hold a multiple of this many columns."""
PANEL_SHARE = 4
"""Where logits are kept, a panel of gradients takes at most one part in so many of the workspace;
kept logits have the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """What suits a kind of device.

    Attributes:
        min_rows, max_rows: Rows of a block of logits. On the CPU 256: fewer pay for packing the
            weight again and again, more leave the cache.
        max_columns: Columns of a block in the forward pass; None for what fits. On the CPU a block
            of logits and one of the weight then stay in the cache.
        grad_columns: Columns of a block in the backward pass, where the rows of a whole panel share
            one product for the weight's gradient.
        keeps: Whether the backward pass finds some of the forward pass's logits kept. It spares up
            to one product of four, and takes memory that is not given back until then.
    """

    min_rows: int
    max_rows: int
    max_columns: int | None
    grad_columns: int
    keeps: bool


_CPU = _Machine(min_rows=256, max_rows=256, max_columns=4096, grad_columns=4096, keeps=True)
_GPU = _Machine(min_rows=128, max_rows=1024, max_columns=None, grad_columns=16384, keeps=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Block sizes of one call.

    Attributes:
        rows: R, rows that go through a matrix product together; always all of them.
        columns: W, columns of a block of logits in the forward pass.
        grad_columns: Likewise in the backward pass.
        panel_rows: Rows whose gradients are held at once in the backward pass; a multiple of R.
        num_kept: How many blocks of logits the forward pass may keep for the backward pass. More
            than 0 only where both passes cut the logits alike.
    """

    rows: int
    columns: int
    grad_columns: int
    panel_rows: int
    num_kept: int


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
    fitting = max(COLUMN_STEP, num_logits // rows // COLUMN_STEP * COLUMN_STEP)
    columns = min(vocab_size, fitting, machine.max_columns or vocab_size)
    grad_columns = min(columns, machine.grad_columns)
    keeps = machine.keeps and columns == grad_columns
    panel_logits = num_logits // PANEL_SHARE if keeps else num_logits
    panel_rows = max(rows, panel_logits // grad_columns // rows * rows)
    left = num_logits - panel_rows * grad_columns
    return Plan(
        rows=rows,
        columns=columns,
        grad_columns=grad_columns,
        panel_rows=panel_rows,
        num_kept=max(0, left) // (rows * columns) if keeps else 0,
    )
