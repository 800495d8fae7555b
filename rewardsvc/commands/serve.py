"""`rewardsvc serve CONFIG`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from rewardsvc.cli import fail
from rewardsvc.errors import ConfigError


def serve(
    config: Annotated[Path, typer.Argument(help="The YAML file; docs/configuration.md.")],
    host: Annotated[str | None, typer.Option(help="Overrides server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Overrides server.port; 0 picks one.")] = None,
    unix_socket: Annotated[Path | None, typer.Option(help="Overrides server.unix_socket.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Overrides server.metrics_port.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the file and exit.")] = False,
) -> None:
    """Serve the scorers of a configuration file over gRPC until SIGTERM."""
    from rewardsvc.config import load_config
    from rewardsvc.logs import configure_logging

    overrides = {
        "host": host,
        "port": port,
        # As typed: relative to where the command runs, not to the file.
        "unix_socket": unix_socket.absolute() if unix_socket is not None else None,
        "metrics_port": metrics_port,
    }
    try:
        loaded = load_config(config)
        chosen = {name: value for name, value in overrides.items() if value is not None}
        server = loaded.server.model_copy(update=chosen)
        loaded = loaded.model_copy(update={"server": server})
        if check:
            typer.echo(f"{config}: {len(loaded.scorers)} scorers, no errors")
            return
        configure_logging(server.log_level, server.log_format)
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars do not belong in a log
        from rewardsvc.server import serve as run_server

        asyncio.run(run_server(loaded, config.resolve().parent))
    except ConfigError as error:
        fail(str(error))
