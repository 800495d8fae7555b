"""The packed backend: one row of tokens, without padding, each shared prefix once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rewardsvc.engine.packing.canonical import Canonical
from rewardsvc.engine.packing.plan import Plan, active
from rewardsvc.engine.packing.prefixes import prefix_tree
from rewardsvc.engine.packing.shape import PackedShape
from rewardsvc.engine.torch_backend import Batching, Reading, TensorBatch, TorchBackend
from rewardsvc.engine.types import Encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedForm:
    """How a model is to be packed.

    Attributes:
        share: Whether prefixes are shared.
        fused: See `Plan`.
        lays_out: Whether the model's own heads are to see one sequence a row; see `encoders`.
        counts_from: Set for models that count positions from behind their padding index and leave
            padding tokens out, wherever they are (RoBERTa): that index.
        max_together: See `PackedShape`.
        block_rows: Set for scores that do not depend on the batch: see `canonical`.
    """

    share: bool = False
    fused: bool = True
    lays_out: bool = False
    counts_from: int | None = None
    max_together: int | None = None
    block_rows: int | None = None


class PackedTorchBackend(TorchBackend):
    """See the module's text. The model's attention implementation must be `attention.NAME`.

    Args:
        reading: The model and how it is read.
        device: Where its parameters are.
        form: How it is packed.
    """

    def __init__(self, reading: Reading, *, device: str, form: PackedForm) -> None:
        super().__init__(
            reading,
            device=device,
            shape=PackedShape(share=form.share, max_together=form.max_together),
            batching=Batching(
                kind="packed",
                shares_prefixes=form.share,
                deterministic=form.block_rows is not None,
            ),
        )
        self._form = form
        self.last_plan: Plan | None = None

    def _numbers(self, reading: Reading, batch: Sequence[Encoded]) -> Tensor:
        tensors, plan = self._pack(batch)
        self.last_plan = plan
        with ExitStack() as stack:
            stack.enter_context(active(plan))
            if self._form.block_rows is not None:
                stack.enter_context(Canonical(self._form.block_rows))
            return reading(tensors)

    def _pack(self, batch: Sequence[Encoded]) -> tuple[TensorBatch, Plan]:
        tree = prefix_tree(batch, share=self._form.share)
        num_rows = tree.num_rows
        if self._form.block_rows is not None:
            num_rows += -num_rows % self._form.block_rows
        # What fills the last block up is computed and never read: any token will do.
        arrays = {
            "input_ids": np.full(num_rows, batch[0].token_ids[0], np.int64),
            "position_ids": np.zeros(num_rows, np.int64),
        }
        if any(item.token_type_ids is not None for item in batch):
            arrays["token_type_ids"] = np.zeros(num_rows, np.int64)
        positions = np.zeros(num_rows, np.int64)
        rows = [tree.rows_of(index, np.arange(len(item))) for index, item in enumerate(batch)]
        for item, own in zip(batch, rows, strict=True):
            positions[own] = np.arange(len(item))
            arrays["input_ids"][own] = item.token_ids
            arrays["position_ids"][own] = self._position_ids(item)
            if item.token_type_ids is not None:
                arrays["token_type_ids"][own] = item.token_type_ids
        inputs = {name: self._tensor(array)[None] for name, array in arrays.items()}
        gather: Tensor | None = None
        if self._form.lays_out:
            places, mask = _padded(rows)
            gather = self._tensor(places)
            inputs["attention_mask"] = self._tensor(mask)
        packed = np.concatenate(
            [own[item.positions] for item, own in zip(batch, rows, strict=True)]
        )
        row_of, column_of = self._places(batch)
        tensors = TensorBatch(
            items=batch,
            inputs=inputs,
            packed=None if self._form.lays_out else self._tensor(packed),
            block_rows=self._form.block_rows,
            rows=row_of,
            columns=column_of,
        )
        plan = Plan(
            nodes=tree.nodes,
            num_rows=num_rows,
            positions=self._tensor(positions),
            block_rows=self._form.block_rows,
            fused=self._form.fused,
            gather=gather,
        )
        return tensors, plan

    def _position_ids(self, item: Encoded) -> NDArray[np.int64]:
        start = self._form.counts_from
        if start is None:
            return np.arange(len(item))
        counted = item.token_ids != start
        found: NDArray[np.int64] = np.cumsum(counted) * counted + start
        return found


def _padded(rows: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of each sequence, filled up with 0, and a mask of what is not filling: [B, longest]."""
    gather = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(gather)
    for index, own in enumerate(rows):
        gather[index, : len(own)] = own
        mask[index, : len(own)] = 1
    return gather, mask
