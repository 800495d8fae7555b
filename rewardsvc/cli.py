"""The command `rewardsvc`. Heavy parts are imported by the verb that needs them."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> None:
    """Entry point of the console script."""
    try:
        from rewardsvc.commands import app
    except ModuleNotFoundError as error:
        sys.exit(
            f"rewardsvc: {error.name} is not installed; the command line comes with "
            "`pip install 'rewardsvc[serve]'` or `'rewardsvc[train]'`"
        )
    app()


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with a message on stderr and no traceback."""
    print(f"rewardsvc: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)
