"""What the service tells Prometheus. One `Metrics` observes the engine and the scorers."""

from __future__ import annotations

import threading
from collections import Counter as Counts
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

import rewardsvc
from rewardsvc.engine.observe import BatchReport, Reuse
from rewardsvc.errors import ItemError, status_of

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
MAX_CLIENTS = 64
"""Clients with a label of their own; what others do is counted under `OTHER_CLIENTS`. Names come
from callers, and each label costs memory here and in Prometheus for ever."""

OTHER_CLIENTS = "(others)"
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All metrics of one server, in a registry of their own.

    Attributes:
        registry: What `/metrics` exposes.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        Info("rewardsvc_build", "Version of the server.", registry=r).info(
            {"version": rewardsvc.__version__}
        )
        self._queue_items = Gauge(
            "rewardsvc_queue_items", "Sequences waiting for a batch.", ["model"], registry=r
        )
        self._queue_tokens = Gauge(
            "rewardsvc_queue_tokens", "Tokens waiting for a batch.", ["model"], registry=r
        )
        self._queue_wait = Histogram(
            "rewardsvc_queue_wait_seconds",
            "Mean wait of a batch's sequences from admission to the forward pass.",
            ["model"],
            buckets=SECONDS,
            registry=r,
        )
        self._batch_tokens = Histogram(
            "rewardsvc_batch_tokens",
            "Tokens asked for in a batch.",
            ["model"],
            buckets=TOKENS,
            registry=r,
        )
        self._batch_items = Histogram(
            "rewardsvc_batch_items",
            "Sequences in a batch.",
            ["model"],
            buckets=ITEMS,
            registry=r,
        )
        self._forward = Histogram(
            "rewardsvc_forward_seconds",
            "Duration of a forward pass.",
            ["model"],
            buckets=SECONDS,
            registry=r,
        )
        self._tokens = Counter(
            "rewardsvc_tokens",
            "Tokens by kind: `asked` by callers, `computed` by the model (padding included).",
            ["model", "kind"],
            registry=r,
        )
        self._padding = Gauge(
            "rewardsvc_padding_share",
            "Share of the last batch's computed tokens that nobody asked for.",
            ["model"],
            registry=r,
        )
        self._latency = Histogram(
            "rewardsvc_scorer_seconds",
            "Duration of a call to a scorer, waiting included.",
            ["scorer"],
            buckets=SECONDS,
            registry=r,
        )
        self._samples = Counter(
            "rewardsvc_samples",
            "Samples by outcome: `ok`, or the code of the item error.",
            ["scorer", "outcome"],
            registry=r,
        )
        self._refusals = Counter(
            "rewardsvc_refused_calls",
            "Calls to a scorer that ended with an error, by gRPC status.",
            ["scorer", "status"],
            registry=r,
        )
        self._reused = Counter(
            "rewardsvc_reused_samples",
            "Samples that were not computed: `cache`, or `in_flight` for another call already.",
            ["model", "source"],
            registry=r,
        )
        self._client_tokens = Counter(
            "rewardsvc_client_tokens",
            f"Tokens answered to a client; to the first {MAX_CLIENTS} that come, and all others.",
            ["client"],
            registry=r,
        )
        self._clients: set[str] = set()
        self._clients_lock = threading.Lock()
        self._calls = Gauge("rewardsvc_calls_in_flight", "RPCs being answered.", registry=r)

    def batch_done(self, report: BatchReport) -> None:
        """A batch was computed."""
        model = report.model
        self._queue_wait.labels(model).observe(report.queue_wait_s)
        self._batch_tokens.labels(model).observe(report.num_tokens)
        self._batch_items.labels(model).observe(report.num_items)
        self._forward.labels(model).observe(report.forward_s)
        self._tokens.labels(model, "asked").inc(report.num_tokens)
        self._tokens.labels(model, "computed").inc(report.num_computed_tokens)
        wasted = max(0, report.num_computed_tokens - report.num_tokens)
        self._padding.labels(model).set(wasted / max(1, report.num_computed_tokens))

    def queue_changed(self, model: str, num_items: int, num_tokens: int) -> None:
        """The queue of `model` now holds this much."""
        self._queue_items.labels(model).set(num_items)
        self._queue_tokens.labels(model).set(num_tokens)

    def reused(self, model: str, reuse: Reuse, num_items: int) -> None:
        """So many items found their answer, or somebody who computes it, already there."""
        self._reused.labels(model, reuse).inc(num_items)

    def served(self, client: str, num_tokens: int) -> None:
        """So many tokens of a client's items were answered."""
        if client not in self._clients:
            with self._clients_lock:
                if len(self._clients) < MAX_CLIENTS:
                    self._clients.add(client)
                else:
                    client = OTHER_CLIENTS
        self._client_tokens.labels(client).inc(num_tokens)

    def answered(self, scorer: str, seconds: float, errors: Sequence[ItemError | None]) -> None:
        """A call to a scorer was answered, with or without an error for each item."""
        self._latency.labels(scorer).observe(seconds)
        outcomes = Counts(error.code if error else "ok" for error in errors)
        for outcome, count in outcomes.items():
            self._samples.labels(scorer, outcome).inc(count)

    def refused(self, scorer: str, error: Exception) -> None:
        """A call to a scorer ended with an error."""
        self._refusals.labels(scorer, status_of(error)).inc()

    def watch_calls(self, count: Callable[[], int]) -> None:
        """Reads the number of RPCs in flight from `count` whenever it is scraped."""
        self._calls.set_function(count)
