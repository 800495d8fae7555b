"""What an overload run keeps, and the judgement on it: `overload.py`'s answers and failures."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rewardsvc.v1 import reward_pb2 as pb

NUM_GREEDY = 4
"""The first so many clients are greedy."""

LONG_RUN_S = 60.0
"""From here on the run is long enough to judge memory by."""

TOLERANCE = 1e-4
"""Scores are a few units; padding and packing change them by less than 1e-5."""

MAX_LENGTH = 128
"""Tokens that the model takes."""

POISON_NAN, POISON_LONG = "z", "a" * 4 * MAX_LENGTH
POISON_CODES = {
    POISON_NAN: pb.ITEM_ERROR_CODE_NON_FINITE,
    POISON_LONG: pb.ITEM_ERROR_CODE_TOO_LONG,
}
RSS_GROWTH = 1.15
"""The median memory of the last third over that of the middle third may be this at most. The first
third is left out: allocators fill their arenas and the first reloads load second copies."""

DEADLINE_SLACK_S = 1.0
"""How late an answer may arrive: the client itself is one Python process with all the calls."""


@dataclass(slots=True)
class Tally:
    """What became of one client's calls.

    Attributes:
        answered: Calls with an OK reply.
        samples: Samples in them.
        statuses: Other calls, by status.
        wrong: What was wrong with answers; should stay empty.
        shares: Latency over deadline of each answered call.
        late: Answered calls that came after their deadline and the slack.
    """

    answered: int = 0
    samples: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    late: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What is true: texts, and their scores under each version."""

    texts: list[str]
    scores: dict[str, dict[str, float]]


class Load:
    """How much is offered: all clients together wait for their turns.

    Args:
        seconds: How long.
        capacity: Samples a second that the service can compute.
        times: A multiple of it; 0: nobody waits.
    """

    def __init__(self, *, seconds: float, capacity: float, times: float) -> None:
        self.seconds = seconds
        self.capacity = capacity
        self._samples_per_s = times * capacity
        self._due = time.monotonic()

    async def turn(self, num_samples: int) -> None:
        """Waits until so many samples are due."""
        if self._samples_per_s:
            due = self._due
            self._due += num_samples / self._samples_per_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))


def mistakes(batch: pb.ScoreBatch, texts: list[str], known: Known) -> list[str]:
    """What is wrong with a reply; mostly nothing."""
    import numpy as np

    values = np.frombuffer(batch.values, "<f4")
    if len(values) != len(texts):
        return [f"{len(values)} values for {len(texts)} samples"]
    if batch.version not in known.scores:
        return [f"unknown version {batch.version!r}"]
    expected = known.scores[batch.version]
    errors = {d.index: d.error.code for d in batch.details if d.HasField("error")}
    wrong = []
    for index, (text, value) in enumerate(zip(texts, values, strict=True)):
        if text in POISON_CODES:
            if errors.get(index) != POISON_CODES[text] or not math.isnan(value):
                wrong.append(f"poison {text[:5]!r} gave {value}, error {errors.get(index)}")
        elif index in errors:
            wrong.append(f"{text!r}: error {errors[index]}")
        elif not abs(value - expected[text]) <= TOLERANCE:
            wrong.append(f"{text!r}: {value}, not {expected[text]} ({batch.version})")
    return wrong


def report_of(
    tallies: dict[str, Tally],
    offered: Counter[str],
    rss: list[float],
    num_reloads: int,
    load: Load,
) -> dict[str, Any]:
    seconds, capacity = load.seconds, load.capacity
    statuses = sum((tally.statuses for tally in tallies.values()), Counter[str]())
    light = [t for name, t in tallies.items() if int(name.partition("-")[2]) >= NUM_GREEDY]
    greedy = [t for name, t in tallies.items() if int(name.partition("-")[2]) < NUM_GREEDY]
    shares = sorted(share for tally in tallies.values() for share in tally.shares)
    third = len(rss) // 3
    growth = statistics.median(rss[-third:]) / statistics.median(rss[third:-third]) if third else 1
    wrong = [complaint for tally in tallies.values() for complaint in tally.wrong]
    starved = [name for name, tally in tallies.items() if not tally.answered]
    p99 = shares[int(0.99 * len(shares))] if shares else math.nan
    failures = []
    if wrong:
        failures.append(f"{len(wrong)} wrong answers or unclear statuses: {wrong[:5]}")
    if starved:
        failures.append(f"starved: {starved}")
    if not p99 <= 1.0:
        failures.append(f"p99 of latency over deadline is {p99:.2f}")
    if any(tally.late for tally in tallies.values()):
        failures.append("answers came after their deadlines")
    is_long = seconds >= LONG_RUN_S
    if is_long and growth > RSS_GROWTH:
        failures.append(f"memory grew by a factor of {growth:.2f}")
    if num_reloads < (2 if is_long else 1):
        failures.append(f"only {num_reloads} reloads")
    return {
        "seconds": seconds,
        "capacity_samples_per_s": round(capacity),
        "offered_samples_per_s": round(offered.total() / seconds),
        "offered_over_capacity": round(offered.total() / seconds / capacity, 2),
        "answered_samples_per_s": round(sum(t.samples for t in tallies.values()) / seconds),
        "answered_calls": sum(t.answered for t in tallies.values()),
        "other_statuses": dict(statuses),
        "wrong": len(wrong),
        "reloads": num_reloads,
        "fewest_answers_of_a_client": min(t.answered for t in tallies.values()),
        "light_calls_answered_share": round(
            sum(t.answered for t in light)
            / max(1, sum(t.answered + t.statuses.total() for t in light)),
            3,
        ),
        "samples_of_a_light_client_median": statistics.median(t.samples for t in light),
        "samples_of_a_greedy_client_median": statistics.median(t.samples for t in greedy),
        "latency_over_deadline_p50": round(shares[len(shares) // 2], 3) if shares else None,
        "latency_over_deadline_p99": round(p99, 3),
        "rss_mib_first_last": [round(rss[0]), round(rss[-1])] if rss else [],
        "rss_growth": round(growth, 3),
        "failures": failures,
    }
