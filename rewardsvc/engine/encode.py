"""Encoding of inputs on a tokenizer's thread: tokens, and the key that tells identical items."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rewardsvc.engine.reuse import digest_of
from rewardsvc.engine.types import Encoded
from rewardsvc.errors import ItemError, ItemErrorCode, ItemFailure

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
