"""What the server says of itself: its Prometheus page, before and after."""

from __future__ import annotations

import math
import re
import urllib.error
import urllib.request
from dataclasses import dataclass

SCRAPE_TIMEOUT_S = 10.0

_LINE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Page = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""(name, sorted labels) → value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView:
    """The engine's work between two looks. NaN where the server did none of it.

    Attributes:
        asked_tokens: Tokens of the samples that were computed.
        computed_tokens: Tokens that went through models for them.
        num_batches: Forward passes.
        batch_items: Samples of a batch, in the mean.
        queue_ms: From admission to the forward pass, the mean over batches.
        forward_ms: Duration of a forward pass, the mean.
        busy: Share of the time in which a forward pass ran.
        padding_share: Of computed tokens, those that nobody asked for (net of shared prefixes).
        prefix_hit_share: Of asked tokens, those that a shared prefix saved (net of padding).
        reused_share: Of the samples, those answered from the cache or together with another.
    """

    asked_tokens: float
    computed_tokens: float
    num_batches: float
    batch_items: float
    queue_ms: float
    forward_ms: float
    busy: float
    padding_share: float
    prefix_hit_share: float
    reused_share: float


def scrape(address: str) -> Page:
    """The page of a server's metrics port.

    Args:
        address: HOST:PORT.

    Raises:
        ValueError: If it cannot be had.
    """
    url = f"http://{address}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=SCRAPE_TIMEOUT_S) as reply:
            text = reply.read().decode("utf-8", "replace")
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(f"--metrics-address: {url} cannot be read: {error}") from None
    return parse_page(text)


def parse_page(text: str) -> Page:
    """Reads Prometheus' text format; what it does not understand is left out."""
    page: Page = {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        labels = tuple(sorted(_LABEL.findall(found["labels"] or "")))
        try:
            page[found["name"], labels] = float(found["value"])
        except ValueError:
            continue
    return page


def between(before: Page, after: Page, seconds: float) -> ServerView:
    """The work between two pages, all models together."""

    def grown(name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(
            value - before.get(key, 0.0)
            for key, value in after.items()
            if key[0] == name and wanted <= set(key[1])
        )

    asked = grown("rewardsvc_tokens_total", kind="asked")
    computed = grown("rewardsvc_tokens_total", kind="computed")
    batches = grown("rewardsvc_forward_seconds_count")
    forward_s = grown("rewardsvc_forward_seconds_sum")
    items = grown("rewardsvc_batch_items_sum")
    reused = grown("rewardsvc_reused_samples_total")
    return ServerView(
        asked_tokens=asked,
        computed_tokens=computed,
        num_batches=batches,
        batch_items=_share(items, batches),
        queue_ms=1000 * _share(grown("rewardsvc_queue_wait_seconds_sum"), batches),
        forward_ms=1000 * _share(forward_s, batches),
        busy=_share(forward_s, seconds) if batches else math.nan,
        padding_share=_share(max(0.0, computed - asked), computed),
        prefix_hit_share=_share(max(0.0, asked - computed), asked),
        reused_share=_share(reused, reused + items),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
