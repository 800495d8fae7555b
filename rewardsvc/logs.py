"""Logging of the server: one line an event, as text for people or JSON for machines."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor


def _console_renderer() -> Processor:
    # Plain tracebacks: the default ones show local variables, and with them callers' data.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def configure_logging(level: str = "info", log_format: str = "text") -> None:
    """Sends all logging of the process to stderr.

    Args:
        level: "debug", "info", "warning" or "error".
        log_format: "text" or "json".
    """
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor]
    if log_format == "json":
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last = [_console_renderer()]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
