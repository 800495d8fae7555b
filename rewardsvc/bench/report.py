"""A sweep as a table, as JSON, and what the machine is."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

import rewardsvc
from rewardsvc.bench.measure import Row
from rewardsvc.bench.roofline import Machine

COLUMNS = (
    "calls",
    "ok",
    "refused",
    "samples/s",
    "tokens/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "queue ms",
    "forward ms",
    "busy",
    "batch",
    "padding",
    "prefix hit",
    "reused",
    "roofline",
)


def table(rows: Sequence[Row], *, load_name: str) -> Table:
    """The rows for a terminal; columns that are unknown in all rows are left out."""
    cells = [_cells(row) for row in rows]
    shown = [i for i in range(len(COLUMNS)) if any(line[i] for line in cells)]
    made = Table(box=None, pad_edge=False)
    made.add_column(load_name, justify="right")
    for i in shown:
        made.add_column(COLUMNS[i], justify="right")
    for row, line in zip(rows, cells, strict=True):
        made.add_row(f"{row.load:g}", *(line[i] for i in shown))
    return made


def _cells(row: Row) -> list[str]:
    server = row.server
    refused = " ".join(f"{count} {status}" for status, count in row.statuses.items())
    if row.item_errors:
        refused = f"{refused} {row.item_errors} item errors".strip()
    seen = [math.nan] * 7
    if server is not None:
        seen = [
            server.queue_ms, server.forward_ms, server.busy, server.batch_items,
            server.padding_share, server.prefix_hit_share, server.reused_share,
        ]  # fmt: skip
    queue, forward, busy, batch, padding, prefix, reused = seen
    return [
        str(row.num_calls),
        str(row.num_ok),
        refused,
        _plain(row.samples_per_s),
        _plain(row.tokens_per_s),
        *(_plain(value) for value in (row.p50_ms, row.p95_ms, row.p99_ms, queue, forward)),
        _percent(busy),
        _plain(batch),
        *(_percent(value) for value in (padding, prefix, reused, row.roofline_share)),
    ]


def _plain(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.3g}%"


def hints(rows: Sequence[Row]) -> list[str]:
    """What the numbers ask to be looked at; in words."""
    found = []
    failed = sum(row.num_calls - row.num_ok for row in rows)
    if failed:
        found.append(f"{failed} calls were refused or failed; latencies are those of the others")
    if any(row.item_errors for row in rows):
        found.append(
            "samples came back with errors of their own; they are not counted in samples/s"
        )
    if any(row.server is not None and row.server.reused_share > 0.05 for row in rows):
        found.append("the result cache or identical samples answered a part; it was not computed")
    return found


def write_json(
    path: Path, rows: Sequence[Row], *, options: dict[str, Any], machine: Machine | None
) -> None:
    """Everything, for other programs; unknown numbers are null."""
    document = {
        "rewardsvc": rewardsvc.__version__,
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "grpcio": version("grpcio"),
            "measured": None if machine is None else asdict(machine),
        },
        "options": options,
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(_nulls(document), indent=2) + "\n", encoding="utf-8")


def _nulls(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _nulls(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_nulls(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
