"""From calls to one line of a report."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import grpc
import numpy as np

from rewardsvc.bench.client import Outcomes
from rewardsvc.bench.roofline import Machine, attainable_tokens
from rewardsvc.bench.server_view import ServerView

STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}

QUANTILES = (0.50, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step of a sweep. NaN is unknown.

    Attributes:
        load: The step's concurrency, or its calls a second.
        num_calls: Calls that were due in the measured time.
        num_ok: Those that were answered.
        statuses: The others, by gRPC status.
        item_errors: Samples of answered calls that came back with an error.
        samples_per_s: Answered samples without an error, a second.
        tokens_per_s: Tokens of them.
        mean_ms: Mean latency of answered calls; in the open loop from when they were due.
        p50_ms: Median latency.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        server: What the server said; None without its metrics.
        roofline_share: Computed tokens a second over what the machine could do at most.
    """

    load: float
    num_calls: int
    num_ok: int
    statuses: dict[str, int] = field(default_factory=dict)
    item_errors: int = 0
    samples_per_s: float = math.nan
    tokens_per_s: float = math.nan
    mean_ms: float = math.nan
    p50_ms: float = math.nan
    p95_ms: float = math.nan
    p99_ms: float = math.nan
    server: ServerView | None = None
    roofline_share: float = math.nan


def summarise(
    outcomes: Outcomes,
    *,
    load: float,
    window: tuple[float, float],
    server: ServerView | None = None,
    ceiling: tuple[Machine, float] | None = None,
) -> Row:
    """One line from all processes' calls.

    Throughput counts what was answered in the window; latency is that of calls due in it, answered
    whenever. So neither the first calls nor the last ones bend either.

    Args:
        outcomes: Of all processes.
        load: The step's concurrency or rate.
        window: Start and end of the measured time, monotonic seconds.
        server: What the server said of this time.
        ceiling: The machine, and the model's parameters.
    """
    start, stop = window
    due = outcomes[(outcomes["due"] >= start) & (outcomes["due"] < stop)]
    ok = due[due["status"] == 0]
    answered = outcomes[
        (outcomes["status"] == 0) & (outcomes["done"] >= start) & (outcomes["done"] < stop)
    ]
    seconds = stop - start
    good = answered["samples"] - answered["item_errors"]
    known = len(answered) > 0 and bool((answered["tokens"] > 0).all())
    tokens = float(answered["tokens"].sum()) if known else math.nan
    if not known and server is not None and server.asked_tokens > 0:
        tokens = server.asked_tokens
    failed = Counter(STATUS_NAMES[int(s)] for s in due["status"] if s)
    latencies_ms = 1000 * (ok["done"] - ok["due"])
    quantiles = np.quantile(latencies_ms, QUANTILES) if len(ok) else [math.nan] * len(QUANTILES)
    return Row(
        load=load,
        num_calls=len(due),
        num_ok=len(ok),
        statuses=dict(sorted(failed.items())),
        item_errors=int(ok["item_errors"].sum()),
        samples_per_s=float(good.sum()) / seconds,
        tokens_per_s=tokens / seconds,
        mean_ms=float(latencies_ms.mean()) if len(ok) else math.nan,
        p50_ms=float(quantiles[0]),
        p95_ms=float(quantiles[1]),
        p99_ms=float(quantiles[2]),
        server=server,
        roofline_share=_roofline_share(server, ceiling, seconds),
    )


def _roofline_share(
    server: ServerView | None, ceiling: tuple[Machine, float] | None, seconds: float
) -> float:
    if server is None or ceiling is None or not server.num_batches or not ceiling[1]:
        return math.nan
    machine, num_parameters = ceiling
    per_batch = server.computed_tokens / server.num_batches
    attainable = attainable_tokens(machine, num_parameters, per_batch)
    return server.computed_tokens / seconds / attainable
