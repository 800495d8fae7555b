"""`rewardsvc report RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardsvc.cli import fail


def report(
    run: Annotated[list[Path], typer.Argument(help="Folder of a training run; several compare.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
) -> None:
    """Write one self-contained HTML page about a training run."""
    from rewardsvc.policy_client.train.report import write_report

    for folder in run:
        if not folder.is_dir():
            fail(f"{folder}: no such folder; name the output_dir of a training run")
    try:
        typer.echo(str(write_report(run, out)))
    except (OSError, ValueError) as error:
        fail(str(error), 1)
