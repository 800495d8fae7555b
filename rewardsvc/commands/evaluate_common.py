"""What the verbs of `rewardsvc evaluate` share: options, reading, scoring, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardsvc.cli import fail
from rewardsvc.errors import ConfigError

if TYPE_CHECKING:
    from rewardsvc.commands.evaluate_scoring import Scored, Unit
    from rewardsvc.policy_client.train.data import Examples

Data = Annotated[
    str, typer.Option(help="JSONL, JSON or Parquet file, a folder, or a data set's id on the hub.")
]
Address = Annotated[str, typer.Option(help="HOST:PORT of the server.")]
Split = Annotated[str, typer.Option(help="Which part of a folder or hub data set.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")]
SubsetColumn = Annotated[str, typer.Option(help="The column with the subset.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that a call may take.")]
ApiKey = Annotated[str | None, typer.Option(envvar="REWARDSVC_API_KEY", help="The server's key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; what is not known is null.")]

LOCAL = "localhost:50051"
TIMEOUT_S = 300.0
SUBSET = "subset"
NO_SUBSET = "(none)"
"""Of a row without one, where others have one."""


def read_examples(
    data: str, split: str, limit: int | None, columns: Sequence[str] = (), *, option: str = "--data"
) -> Examples:
    """The rows of a data set; ends the program where they cannot be read."""
    from rewardsvc.policy_client.train.data import load_examples

    try:
        return load_examples(data, split=split, limit=limit).require(*columns)
    except (ConfigError, OSError) as error:
        fail(f"{option}: {error}")


def scored(units: Sequence[Unit], scorer: str, server: tuple[str, str | None, float]) -> Scored:
    """Scores of all completions; ends the program where a call as a whole fails.

    Args:
        units: What to score.
        scorer: By its name.
        server: Address, key, seconds that a call may take.
    """
    from rewardsvc.commands.evaluate_scoring import score_units
    from rewardsvc.policy_client import RewardClient, RewardClientError

    address, api_key, timeout_s = server
    try:
        with RewardClient(address, api_key=api_key, timeout_s=timeout_s) as client:
            return score_units(client, scorer, units)
    except (RewardClientError, ValueError, TypeError) as error:
        fail(str(error), 1)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document; NaN is null."""
    typer.echo(json.dumps(_without_nan(document), ensure_ascii=False, indent=2))


def _without_nan(value: Any) -> Any:
    """The same with None for NaN, which is not JSON."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
