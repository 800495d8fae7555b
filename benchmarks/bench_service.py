"""What the service costs: the same scorer in process and over gRPC, at several sizes of a call.

The server is a process of its own; the scorer (exact match) does next to nothing, so that what is
measured is conversion, transport and dispatch. Also prints how long the client takes to import.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import Stats, interleave, parser, row, write_rows

from rewardsvc.config import parse_scorers
from rewardsvc.engine.host import EngineHost
from rewardsvc.policy_client import RewardClient
from rewardsvc.scorers import scorer_class
from rewardsvc.scoring import Sample
from rewardsvc.scoring.build import BuildEnv

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "demo"))
from service import running_service

CONFIG = "scorers: {exact: {type: exact}}\n"
SIZES = (1, 16, 256, 4096)
TEXT = "The answer to the question is forty-two, give or take. " * 4


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    sizes, rounds = (SIZES[:2], 5) if arguments.quick else (SIZES, 50)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "service.yaml"
        config.write_text(CONFIG)
        with running_service(config) as service, RewardClient(service.address) as client:
            for size in sizes:
                rows += _measure(client, size, rounds)
    rows.append(row("import rewardsvc.policy_client", _import_time(3 if arguments.quick else 10)))
    _show(rows)
    write_rows(arguments.json, rows)


def _measure(client: RewardClient, size: int, rounds: int) -> list[dict[str, Any]]:
    texts = [f"{TEXT}{i}" for i in range(size)]
    scorer = scorer_class("exact")(parse_scorers("exact", {"type": "exact"})["exact"], _env())
    samples = [Sample(prompt=TEXT, completion=text, answer=text) for text in texts]
    prompts = [TEXT] * size
    stats = interleave(
        {
            "in process": lambda: asyncio.run(scorer.score(samples)),
            "over gRPC": lambda: client.score("exact", prompts, texts, answers=texts),
        },
        rounds=rounds,
    )
    extra = stats["over gRPC"].median_s - stats["in process"].median_s
    return [
        row(
            name,
            found,
            samples=size,
            extra_us_per_sample=1e6 * extra / size if name == "over gRPC" else None,
        )
        for name, found in stats.items()
    ]


def _env() -> BuildEnv:
    def no_child(name: str) -> Any:
        raise KeyError(name)

    return BuildEnv(name="exact", base_dir=Path(), child=no_child, engine=EngineHost())


def _import_time(rounds: int) -> Stats:
    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    cases = {
        "python": lambda: run("pass"),
        "client": lambda: run("import rewardsvc.policy_client"),
    }
    stats = interleave(cases, rounds=rounds, warmup=1)
    bare = stats["python"].median_s
    found = stats["client"]
    return Stats(
        median_s=found.median_s - bare,
        p20_s=found.p20_s - bare,
        p80_s=found.p80_s - bare,
        num_rounds=found.num_rounds,
    )


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for heading in ("", "samples a call", "median ms", "p20", "p80", "gRPC extra us/sample"):
        table.add_column(heading, justify="right")
    for found in rows:
        extra = found.get("extra_us_per_sample")
        table.add_row(
            found["name"],
            str(found.get("samples", "")),
            *(f"{1000 * found[key]:.3f}" for key in ("median_s", "p20_s", "p80_s")),
            "" if extra is None else f"{extra:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
