"""Answers that need not be computed again: what makes two items the same, and a bounded cache.

Items are compared by a digest of everything that an answer depends on but the model: token ids,
positions, token types and the query. A batcher holds one model for its whole life (a reload makes
a new batcher), so the model's version is part of the key by construction: a cache dies with it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

from pydantic import BaseModel, ConfigDict, Field

from rewardsvc.engine.types import Encoded, Output

DIGEST_BYTES = 16
ENTRY_OVERHEAD_BYTES = 400
"""What an entry takes beside its numbers: key, array object, two links; measured, rounded up."""

MIB = 1024 * 1024


class CacheSettings(BaseModel):
    """The `cache:` section of a model scorer.

    Attributes:
        max_entries: Answers kept at most; the least recently used goes first.
        max_mib: Memory that they may take, in MiB.
        ttl_s: Seconds after which an answer is forgotten; None: never.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_entries: int = Field(default=100_000, ge=1)
    max_mib: float = Field(default=64.0, gt=0)
    ttl_s: float | None = Field(default=None, gt=0)


def digest_of(item: Encoded) -> bytes:
    """Equal for items that any model answers alike."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    # Lengths first: the arrays are hashed one after another.
    types = item.token_type_ids
    digest.update(repr((len(item), len(item.positions), types is not None, item.query)).encode())
    digest.update(item.order_key)  # the token ids
    digest.update(item.positions.tobytes())
    if types is not None:
        digest.update(types.tobytes())
    return digest.digest()


class AnswerCache:
    """Answers by digest, bounded in number, memory and age. For one event loop."""

    def __init__(
        self, settings: CacheSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._answers: OrderedDict[bytes, tuple[Output, float]] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def num_bytes(self) -> int:
        """What the answers take, about."""
        return self._num_bytes

    def get(self, key: bytes) -> Output | None:
        """The answer, if it is known and not too old."""
        found = self._answers.get(key)
        if found is None:
            return None
        output, kept_at = found
        ttl_s = self._settings.ttl_s
        if ttl_s is not None and self._clock() - kept_at > ttl_s:
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return output

    def put(self, key: bytes, output: Output) -> None:
        """Keeps an answer; one larger than the whole cache is not kept."""
        if key in self._answers:
            self._drop(key)
        # A copy: the output may be a view of all the numbers of its batch.
        kept = output.copy()
        kept.flags.writeable = False
        self._answers[key] = (kept, self._clock())
        self._num_bytes += kept.nbytes + ENTRY_OVERHEAD_BYTES
        limit = self._settings.max_mib * MIB
        while len(self._answers) > self._settings.max_entries or self._num_bytes > limit:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: bytes) -> None:
        output, _ = self._answers.pop(key)
        self._num_bytes -= output.nbytes + ENTRY_OVERHEAD_BYTES
