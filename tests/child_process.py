"""What tests run in a process of their own: importable there, which test modules are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def call_in_child(function: Callable[..., Any], answers: Any) -> None:
    """Calls a reward function and sends back what it gives."""
    answers.send(function(prompts=["p", "p"], completions=["3", "bad"]))
