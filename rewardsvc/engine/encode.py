"""Encoding of inputs on a tokenizer's thread: tokens, and the key that tells identical items."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rewardsvc.engine.reuse import digest_of
from rewardsvc.engine.types import Encoded
from rewardsvc.errors import ItemError, ItemErrorCode, ItemFailure

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK = 128
"""Samples per job of a tokenizer's thread: long enough to be worth the hand-over."""


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """An encoded input, and the key of items that have the same answer."""

    item: Encoded
    key: bytes


def encode_chunk(chunk: Sequence[T], encode: Callable[[T], Encoded]) -> list[Ready | ItemError]:
    """Encodes each input; never raises."""
    encoded: list[Ready | ItemError] = []
    for value in chunk:
        try:
            item = encode(value)
            encoded.append(Ready(item, digest_of(item)))
        except ItemFailure as failure:
            encoded.append(failure.error)
        except Exception as error:
            logger.exception("a sample could not be encoded")
            message = f"the sample could not be encoded: {type(error).__name__}"
            encoded.append(ItemError(ItemErrorCode.INTERNAL, message))
    return encoded


async def encoded_ahead(
    inputs: Sequence[T], encode: Callable[[T], Encoded], threads: Executor, *, num_ahead: int
) -> AsyncGenerator[tuple[int, list[Ready | ItemError]], None]:
    """Encodes inputs in chunks, at most `num_ahead` of them at a time; what is left when it is
    closed is not encoded.

    Yields:
        The place of a chunk's first input, and the chunk encoded; in order.
    """
    loop = asyncio.get_running_loop()
    jobs: deque[tuple[int, asyncio.Future[list[Ready | ItemError]]]] = deque()
    starts = iter(range(0, len(inputs), CHUNK))
    try:
        while True:
            for start in itertools.islice(starts, num_ahead - len(jobs)):
                work = partial(encode_chunk, inputs[start : start + CHUNK], encode)
                jobs.append((start, loop.run_in_executor(threads, work)))
            if not jobs:
                return
            start, job = jobs.popleft()
            yield start, await job
    finally:
        for _, job in jobs:
            job.cancel()
