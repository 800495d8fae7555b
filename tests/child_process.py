"""Other processes of a test: what runs in one, importable there as test modules are not; and which
are left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def call_in_child(function: Callable[..., Any], answers: Any) -> None:
    """Calls a reward function and sends back what it gives."""
    answers.send(function(prompts=["p", "p"], completions=["3", "bad"]))


def processes_named(name: str) -> list[int]:
    """Ids of the machine's processes whose name, as prctl(PR_SET_NAME) sets it, is this one.

    Tests run side by side, so programs whose end one waits for give themselves a name of their own.
    """
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "comm").read_text().strip() == name:
                    found.append(int(folder.name))
            except OSError:
                continue
    return found
