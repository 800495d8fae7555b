"""From the samples of one request message to a batch of scores."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from rewardsvc.convert import batch_to_proto, merge, samples_from_proto
from rewardsvc.scoring.slot import Slot
from rewardsvc.scoring.types import Score
from rewardsvc.v1 import reward_pb2 as pb

CONVERT_ON_LOOP = 256
"""Larger requests are converted in a thread, so that they do not hold up the event loop."""


async def score_messages(
    slot: Slot, messages: Sequence[pb.Sample], bad: Mapping[int, str]
) -> pb.ScoreBatch:
    """Converts, scores and converts back; a bad sample gets its error in its place."""
    big = len(messages) > CONVERT_ON_LOOP
    if big:
        good, indices, failed = await asyncio.to_thread(samples_from_proto, messages, bad)
    else:
        good, indices, failed = samples_from_proto(messages, bad)
    scores: list[Score] = []
    version = slot.version
    if good:
        scores, version = await slot.score_versioned(good)
    else:
        slot.require()
    merged = merge(len(messages), indices, scores, failed)
    if big:
        return await asyncio.to_thread(batch_to_proto, merged, version)
    return batch_to_proto(merged, version)
