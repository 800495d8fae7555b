"""Runs a batch so that an item that cannot be computed harms no other."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from rewardsvc.engine.types import Answer, Backend, Encoded
from rewardsvc.errors import ItemError, ItemErrorCode

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 500
"""An exception's text is cut to this length in an item's error."""


def run_isolated(backend: Backend, batch: Sequence[Encoded], *, model: str) -> list[Answer]:
    """One answer per item: its output, or why it has none.

    If the batch raises (out of memory, a device error), both halves are run on their own, down to
    single items; whoever fails alone is the culprit. A batch of n with one culprit costs about
    2 log2(n) more passes.
    """
    try:
        outputs = backend.run(batch)
        if len(outputs) != len(batch):
            raise RuntimeError(f"backend gave {len(outputs)} outputs for {len(batch)} items")
    except Exception as error:
        failure = _as_item_error(error, batch)
        logger.warning("%s: a batch of %d sequences failed: %s", model, len(batch), failure.message)
    else:
        return [_checked(output) for output in outputs]
    # Outside the handler: the exception's traceback keeps the failed pass's tensors alive.
    backend.recover()
    if len(batch) == 1:
        return [failure]
    half = len(batch) // 2
    return [
        *run_isolated(backend, batch[:half], model=model),
        *run_isolated(backend, batch[half:], model=model),
    ]


def _checked(output: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Answer:
    if np.isfinite(output).all():
        return output
    return ItemError(
        ItemErrorCode.NON_FINITE,
        "the model gave NaN or infinity for this sample; float16 overflows easily, so try "
        "dtype: bfloat16 or float32",
    )


def _as_item_error(error: Exception, batch: Sequence[Encoded]) -> ItemError:
    num_tokens = max(map(len, batch))
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory:
        return ItemError(
            ItemErrorCode.MODEL_FAILURE,
            f"out of memory with a sequence of {num_tokens} tokens; lower max_length or free "
            "memory on the device",
            retryable=True,
        )
    text = f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARS]
    return ItemError(
        ItemErrorCode.MODEL_FAILURE,
        f"the model failed on a sequence of {num_tokens} tokens: {text}",
    )
