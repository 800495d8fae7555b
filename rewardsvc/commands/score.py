"""`rewardsvc score SCORER`: one sample from the command line, or a file of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rewardsvc.cli import fail


def score(
    scorer: Annotated[str, typer.Argument(help="A scorer's name in the server's configuration.")],
    address: Annotated[str, typer.Option(help="HOST:PORT of the server.")] = "localhost:50051",
    prompt: Annotated[str, typer.Option(help="The prompt.")] = "",
    completion: Annotated[str | None, typer.Option(help="The completion.")] = None,
    answer: Annotated[str | None, typer.Option(help="The reference answer.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="JSONL with `completion` and optionally `prompt`, `answer`, `metadata`; "
            "- for standard input."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 60.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="REWARDSVC_API_KEY", help="The server's API key.")
    ] = None,
) -> None:
    """Score completions; prints one JSON object a line, in order."""
    from rewardsvc.policy_client import RewardClient, RewardClientError

    if (completion is None) == (file is None):
        fail("give either --completion or --file")
    if file is None:
        rows: list[dict[str, Any]] = [
            {"prompt": prompt, "completion": completion, "answer": answer, "metadata": None}
        ]
    else:
        rows = _read_rows(file)
    try:
        with RewardClient(address, api_key=api_key, timeout_s=timeout) as client:
            batch = client.score(
                scorer,
                [row.get("prompt", "") for row in rows],
                [row["completion"] for row in rows],
                answers=[row.get("answer") for row in rows],
                metadata=[row.get("metadata") for row in rows],
            )
    except (RewardClientError, ValueError) as error:
        fail(str(error), 1)
    for item in batch:
        line: dict[str, Any] = {"value": item.value}
        if item.components:
            line["components"] = dict(item.components)
        if item.steps is not None and len(item.steps):
            line["steps"] = [float(step) for step in item.steps]
        if item.verdict is not None:
            line["verdict"] = str(item.verdict)
        if item.explanation:
            line["explanation"] = item.explanation
        if item.error is not None:
            line["error"] = {"code": str(item.error.code), "message": item.error.message}
        typer.echo(json.dumps(line, ensure_ascii=False))


def _read_rows(file: Path) -> list[dict[str, Any]]:
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            fail(f"{file}:{number}: not JSON: {error}")
        if not isinstance(row, dict) or "completion" not in row:
            fail(f"{file}:{number}: must be an object with `completion`")
        rows.append(row)
    return rows
