"""The padded backend: rows of a batch padded on the right, one forward pass, heads where wanted.

Shape letters: B rows, T padded length, N positions of interest in all rows, D hidden size,
C numbers per position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rewardsvc.engine.logprobs import PLAIN_LOGITS, LogitRule, linear_logprobs
from rewardsvc.engine.shape import PaddedShape
from rewardsvc.engine.types import BatchShape, Encoded, Output


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaddedBatch:
    """A batch as tensors on the device.

    Attributes:
        items: What it was made of.
        inputs: Keyword arguments of the model: `input_ids`, `attention_mask` and, for text pairs,
            `token_type_ids`; int64 [B, T].
        rows: int64 [N], the row of each position of interest; items one after another.
        columns: int64 [N], its column.
    """

    items: Sequence[Encoded]
    inputs: dict[str, Tensor]
    rows: Tensor
    columns: Tensor


class Reading(Protocol):
    """A model together with the way its numbers are read."""

    def __call__(self, batch: PaddedBatch) -> Tensor:
        """Float [N, C], a row for each position of interest."""


class Head(Protocol):
    """What turns hidden states into numbers."""

    def __call__(self, hidden_ND: Tensor, batch: PaddedBatch) -> Tensor:
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

    def __call__(self, batch: PaddedBatch) -> Tensor:
        """See `Reading`."""
        hidden_BTD: Tensor = self._trunk(**batch.inputs, use_cache=False).last_hidden_state
        return self._head(hidden_BTD[batch.rows, batch.columns], batch)


class OwnForward:
    """Reads the logits of the model's own forward: encoders have poolers and heads of many kinds.

    Logits of [B, C] are one answer per row, whatever its position; of [B, T, C] one per position.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model

    def __call__(self, batch: PaddedBatch) -> Tensor:
        """See `Reading`."""
        logits: Tensor = self._model(**batch.inputs).logits
        return logits[batch.rows] if logits.dim() == 2 else logits[batch.rows, batch.columns]


class ModuleHead:
    """A head that is a torch module applied to each position on its own."""

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        self._module = module

    def __call__(self, hidden_ND: Tensor, batch: PaddedBatch) -> Tensor:
        """See `Head`."""
        return self._module(hidden_ND)


class LogprobHead:
    """Log-prob (column 0) and entropy (column 1, 0 if not asked for) of each next token."""

    def __init__(
        self, weight_VD: Tensor, bias_V: Tensor | None, rule: LogitRule = PLAIN_LOGITS
    ) -> None:
        self._weight_VD = weight_VD
        self._bias_V = bias_V
        self._rule = rule

    def __call__(self, hidden_ND: Tensor, batch: PaddedBatch) -> Tensor:
        """See `Head`. Items that are asked alike are computed together."""
        targets_N = batch.inputs["input_ids"][batch.rows, batch.columns + 1]
        out_N2 = torch.zeros(len(hidden_ND), 2, device=hidden_ND.device)
        query_of_row = [item.query for item in batch.items]
        assert None not in query_of_row, "an item without a query reached the log-prob head"
        for query in set(query_of_row):
            if query is None:
                continue
            wanted_B = torch.tensor([q == query for q in query_of_row], device=hidden_ND.device)
            wanted_N = wanted_B[batch.rows].nonzero().squeeze(-1)
            logprobs, entropies = linear_logprobs(
                hidden_ND[wanted_N],
                self._weight_VD,
                targets_N[wanted_N],
                bias_V=self._bias_V,
                rule=self._rule,
                temperature=query.temperature,
                entropy=query.entropy,
            )
            out_N2[wanted_N, 0] = logprobs
            if entropies is not None:
                out_N2[wanted_N, 1] = entropies
        return out_N2


class PaddedTorchBackend:
    """See the module's text, and `rewardsvc.engine.types.Backend` for the methods.

    Args:
        reading: The model and how it is read.
        device: Where its parameters are.
        pad_id: Fills rows up. Never read: the mask says what is attended, whatever the ids are.
    """

    def __init__(self, reading: Reading, *, device: str, pad_id: int = 0) -> None:
        self._reading: Reading | None = reading
        self._device = torch.device(device)
        self._pad_id = pad_id
        self._shape = PaddedShape()

    @property
    def shape(self) -> BatchShape:
        """Rows of similar length."""
        return self._shape

    def run(self, batch: Sequence[Encoded]) -> list[Output]:
        """One output per item."""
        assert self._reading is not None, "the backend is closed"
        with torch.inference_mode():
            padded = self._pad(batch)
            # One copy to the host per batch; float32 whatever the model computes in.
            numbers = self._reading(padded).float().cpu().numpy()
        bounds = np.cumsum([len(item.positions) for item in batch])[:-1]
        return np.split(numbers, bounds)

    def _pad(self, batch: Sequence[Encoded]) -> PaddedBatch:
        num_rows, length = len(batch), max(map(len, batch))
        ids_BT = np.full((num_rows, length), self._pad_id, np.int64)
        mask_BT = np.zeros((num_rows, length), np.int64)
        types_BT = np.zeros((num_rows, length), np.int64)
        for row, item in enumerate(batch):
            ids_BT[row, : len(item)] = item.token_ids
            mask_BT[row, : len(item)] = 1
            if item.token_type_ids is not None:
                types_BT[row, : len(item)] = item.token_type_ids
        arrays = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if any(item.token_type_ids is not None for item in batch):
            arrays["token_type_ids"] = types_BT
        counts = [len(item.positions) for item in batch]
        columns_N = np.concatenate([item.positions for item in batch]).astype(np.int64)
        return PaddedBatch(
            items=batch,
            inputs={name: self._tensor(array) for name, array in arrays.items()},
            rows=self._tensor(np.repeat(np.arange(num_rows), counts)),
            columns=self._tensor(columns_N),
        )

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def recover(self) -> None:
        """Gives cached blocks back, so that a smaller batch finds memory in one piece."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Drops the model."""
        self._reading = None
        self.recover()
