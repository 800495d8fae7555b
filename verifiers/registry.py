"""Verifiers by name: those of this library, and those that other packages add.

A package adds one with an entry point, and the service's scorer `verifier` can name it from then:

    [project.entry-points."rewardsvc.verifiers"]
    ends_with = "my_package.verifiers:EndsWith"

    # in the service's configuration
    polite: {type: verifier, name: ends_with, options: {ignore_case: true}}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

BUILTIN: dict[str, str] = {
    "code": "rewardsvc.verifiers.code:CodeVerifier",
    "countdown": "rewardsvc.verifiers.countdown:Countdown",
    "exact": "rewardsvc.verifiers.exact:ExactMatch",
    "format": "rewardsvc.verifiers.format:Format",
    "instructions": "rewardsvc.verifiers.instructions:InstructionFollowing",
    "json_schema": "rewardsvc.verifiers.json_schema:JsonSchema",
    "language": "rewardsvc.verifiers.language:LanguageConsistency",
    "math": "rewardsvc.verifiers.math.verifier:MathVerifier",
    "multiple_choice": "rewardsvc.verifiers.multiple_choice:MultipleChoice",
    "regex": "rewardsvc.verifiers.regex_match:RegexMatch",
}
"""Name → "module:class"; modules are imported when they are first named."""

ENTRY_POINT_GROUP = "rewardsvc.verifiers"


def verifier_names() -> list[str]:
    """All known names, built-in and installed, sorted."""
    return sorted({*BUILTIN, *(e.name for e in entry_points(group=ENTRY_POINT_GROUP))})


def verifier_class(name: str) -> type[Any]:
    """The class behind a name. A built-in name cannot be taken over.

    Raises:
        ValueError: If there is no such verifier, naming the closest one, or if what the entry point
            names is no class with a `verify`.
    """
    target = BUILTIN.get(name) or _installed(name)
    if target is None:
        close = difflib.get_close_matches(name, verifier_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(verifier_names())}"
        raise ValueError(f"name: no verifier is named {name!r}; {hint}")
    module, _, attribute = target.partition(":")
    found = getattr(import_module(module), attribute, None)
    if not isinstance(found, type) or not callable(getattr(found, "verify", None)):
        raise ValueError(f"name: {name!r} is {target}, which is no class with a `verify`")
    return found


def make_verifier(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """A verifier by name.

    Args:
        name: See `verifier_names`.
        options: Keyword arguments of its class.

    Raises:
        ValueError: If there is no such verifier, or it does not take these options.
    """
    cls = verifier_class(name)
    try:
        return cls(**(options or {}))
    except TypeError as error:
        raise ValueError(f"options: {name} does not take {dict(options or {})}: {error}") from error


def _installed(name: str) -> str | None:
    entries = entry_points(group=ENTRY_POINT_GROUP, name=name)
    return next((entry.value for entry in entries), None)
