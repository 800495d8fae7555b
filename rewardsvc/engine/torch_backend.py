"""Batches as tensors, how models are read, and the padded backend.

A padded batch is rows of sequences, filled up on the right; a packed one (`engine.packing`) is one
row with all of them. Readings need not know which it is.

Shape letters: B sequences, T padded length, N positions of interest in all sequences, D hidden
size, C numbers per position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rewardsvc.engine.logprobs import PLAIN_LOGITS, LogitRule, linear_logprobs
from rewardsvc.engine.shape import AloneShape, PaddedShape
from rewardsvc.engine.types import BatchShape, Encoded, LogprobQuery, Output
from rewardsvc.kernels import row_head


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorBatch:
    """A batch as tensors on the device.

    Attributes:
        items: What it was made of.
        inputs: Keyword arguments of the model. Padded: `input_ids`, `attention_mask` and, for text
            pairs, `token_type_ids`; int64 [B, T]. Packed: `input_ids` and `position_ids`, int64
            [1, packed tokens], and the others where they are wanted.
        rows: int64 [N], the sequence of each position of interest; sequences one after another.
        columns: int64 [N], its place in the sequence.
        packed: int64 [N], its place in the packed row; None if the batch is padded.
        block_rows: Heads are to be applied to this many rows at a time; None is any number.
    """

    items: Sequence[Encoded]
    inputs: dict[str, Tensor]
    rows: Tensor
    columns: Tensor
    packed: Tensor | None = None
    block_rows: int | None = None

    def read(self, values: Tensor) -> Tensor:
        """The positions of interest, [N, D], of what a model gave for `inputs`, [., ., D]."""
        if self.packed is not None:
            return values[0, self.packed]
        return values[self.rows, self.columns]


class Reading(Protocol):
    """A model together with the way its numbers are read."""

    def __call__(self, batch: TensorBatch) -> Tensor:
        """Float [N, C], a row for each position of interest."""


class Head(Protocol):
    """What turns hidden states into numbers."""

    def __call__(self, hidden_ND: Tensor, batch: TensorBatch) -> Tensor:
        """Float [N, C]."""


class HiddenStates:
    """Reads a head at chosen positions of a trunk's last hidden states, and nowhere else.

    Args:
        trunk: A transformers base model: no head, gives `last_hidden_state`.
        head: Applied to the gathered positions.
    """

    def __init__(self, trunk: Callable[..., Any], head: Head) -> None:
        self._trunk = trunk
        self._head = head

    def __call__(self, batch: TensorBatch) -> Tensor:
        """See `Reading`."""
        hidden_BTD: Tensor = self._trunk(**batch.inputs, use_cache=False).last_hidden_state
        return self._head(batch.read(hidden_BTD), batch)


class OwnForward:
    """Reads the logits of the model's own forward: encoders have poolers and heads of many kinds.

    Logits of [B, C] are one answer per sequence, whatever the position; of [B, T, C] one per
    position. Packed, the trunk computes one row, and its last hidden states are laid out as
    sequences before the heads get them (`packing.encoders`).
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model

    def __call__(self, batch: TensorBatch) -> Tensor:
        """See `Reading`."""
        logits: Tensor = self._model(**batch.inputs).logits
        return logits[batch.rows] if logits.dim() == 2 else logits[batch.rows, batch.columns]


class ModuleHead:
    """A head that is a torch module applied to each position on its own.

    A single linear layer runs in float32, whatever the model's dtype, and each position in a block
    of one size: bfloat16's steps of 0.03 at 5 would tie rewards.
    """

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        self._module = module

    def __call__(self, hidden_ND: Tensor, batch: TensorBatch) -> Tensor:
        """See `Head`."""
        module = self._module
        # An exported graph is float32 and promises nothing of bits, and cannot have blocks.
        if type(module) is torch.nn.Linear and not torch.compiler.is_exporting():
            return row_head(hidden_ND, module.weight, module.bias)
        return module(hidden_ND)


class LogprobHead:
    """Log-prob (column 0) and entropy (column 1, 0 if not asked for) of each next token."""

    def __init__(
        self, weight_VD: Tensor, bias_V: Tensor | None, rule: LogitRule = PLAIN_LOGITS
    ) -> None:
        self._weight_VD = weight_VD
        self._bias_V = bias_V
        self._rule = rule

    def __call__(self, hidden_ND: Tensor, batch: TensorBatch) -> Tensor:
        """See `Head`. Sequences that are asked alike are computed together."""
        device = hidden_ND.device
        targets_N = torch.from_numpy(
            np.concatenate([item.token_ids[item.positions + 1] for item in batch.items])
        ).to(device, torch.int64)
        out_N2 = torch.zeros(len(hidden_ND), 2, device=device)
        queries = [item.query for item in batch.items]
        assert None not in queries, "an item without a query reached the log-prob head"
        for query in set(queries):
            if query is None:
                continue
            wanted_B = torch.tensor([q == query for q in queries], device=device)
            wanted_N = wanted_B[batch.rows].nonzero().squeeze(-1)
            size = batch.block_rows or max(1, len(wanted_N))
            for block_N in torch.split(wanted_N, size):
                some_N = block_N
                if batch.block_rows is not None:
                    # Filled up with its last row: the shape must not depend on the batch.
                    missing = size - len(block_N)
                    some_N = torch.cat([block_N, block_N[-1:].expand(missing)])
                numbers = self._numbers(hidden_ND[some_N], targets_N[some_N], query)
                out_N2[block_N] = numbers[: len(block_N)]
        return out_N2

    def _numbers(self, hidden_ND: Tensor, targets_N: Tensor, query: LogprobQuery) -> Tensor:
        logprobs, entropies = linear_logprobs(
            hidden_ND,
            self._weight_VD,
            targets_N,
            bias_V=self._bias_V,
            rule=self._rule,
            temperature=query.temperature,
            entropy=query.entropy,
        )
        if entropies is None:
            entropies = torch.zeros_like(logprobs)
        return torch.stack([logprobs, entropies], -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How a backend computes batches, for logs and for people.

    Attributes:
        kind: "packed": one row without padding; "padded": rows of similar length; "alone": one
            sequence after the other.
        shares_prefixes: Whether a prefix that sequences have in common is computed once.
        deterministic: Whether scores do not depend on the batch, bit for bit.
        reason: Why it is not packed, if it is not.
    """

    kind: str
    shares_prefixes: bool = False
    deterministic: bool = False
    reason: str = ""

    def __str__(self) -> str:
        traits = [self.kind]
        traits += ["shares prefixes"] if self.shares_prefixes else []
        traits += ["deterministic"] if self.deterministic else []
        return ", ".join(traits) + (f" ({self.reason})" if self.reason else "")


class TorchBackend:
    """What the backends of torch models have in common: see `rewardsvc.engine.types.Backend`.

    Args:
        reading: The model and how it is read.
        device: Where its parameters are.
        shape: How batches are put together.
        batching: What to tell people of it.
    """

    def __init__(
        self, reading: Reading, *, device: str, shape: BatchShape, batching: Batching
    ) -> None:
        self._reading: Reading | None = reading
        self._device = torch.device(device)
        self._shape = shape
        self.batching = batching

    @property
    def shape(self) -> BatchShape:
        """How batches are put together."""
        return self._shape

    def run(self, batch: Sequence[Encoded]) -> list[Output]:
        """One output per item."""
        assert self._reading is not None, "the backend is closed"
        with torch.inference_mode():
            # One copy to the host per batch; float32 whatever the model computes in.
            numbers = self._numbers(self._reading, batch).float().cpu().numpy()
        bounds = np.cumsum([len(item.positions) for item in batch])[:-1]
        return np.split(numbers, bounds)

    def _numbers(self, reading: Reading, batch: Sequence[Encoded]) -> Tensor:
        """[N, C] for all positions of interest."""
        raise NotImplementedError

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _places(self, batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """`rows` and `columns` of a `TensorBatch`."""
        counts = [len(item.positions) for item in batch]
        columns_N = np.concatenate([item.positions for item in batch]).astype(np.int64)
        rows_N = np.repeat(np.arange(len(batch)), counts)
        return self._tensor(rows_N), self._tensor(columns_N)

    def recover(self) -> None:
        """Gives cached blocks back, so that a smaller batch finds memory in one piece."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Drops the model."""
        self._reading = None
        self.recover()


class PaddedTorchBackend(TorchBackend):
    """Rows of a batch, filled up on the right.

    Args:
        reading: The model and how it is read.
        device: Where its parameters are.
        pad_id: Fills rows up. Never read: the mask says what is attended, whatever the ids are.
        alone: Whether each sequence is computed by itself.
        batching: What to tell people; None says that it is padded.
    """

    def __init__(
        self,
        reading: Reading,
        *,
        device: str,
        pad_id: int = 0,
        alone: bool = False,
        batching: Batching | None = None,
    ) -> None:
        shape: BatchShape = AloneShape() if alone else PaddedShape()
        batching = batching or Batching(kind="alone" if alone else "padded")
        super().__init__(reading, device=device, shape=shape, batching=batching)
        self._pad_id = pad_id
        self._alone = alone

    def _numbers(self, reading: Reading, batch: Sequence[Encoded]) -> Tensor:
        if self._alone:
            return torch.cat([reading(self._pad([item])) for item in batch])
        return reading(self._pad(batch))

    def _pad(self, batch: Sequence[Encoded]) -> TensorBatch:
        num_rows, length = len(batch), max(map(len, batch))
        arrays = {
            "input_ids": np.full((num_rows, length), self._pad_id, np.int64),
            "attention_mask": np.zeros((num_rows, length), np.int64),
        }
        if any(item.token_type_ids is not None for item in batch):
            arrays["token_type_ids"] = np.zeros((num_rows, length), np.int64)
        for row, item in enumerate(batch):
            arrays["input_ids"][row, : len(item)] = item.token_ids
            arrays["attention_mask"][row, : len(item)] = 1
            if item.token_type_ids is not None:
                arrays["token_type_ids"][row, : len(item)] = item.token_type_ids
        inputs = {name: self._tensor(array) for name, array in arrays.items()}
        rows, columns = self._places(batch)
        return TensorBatch(items=batch, inputs=inputs, rows=rows, columns=columns)
