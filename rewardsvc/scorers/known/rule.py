"""What a published model is known by, and which settings it wants. Tables of these are beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from rewardsvc.errors import ConfigError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._loading import model_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FromConfig:
    """A setting that the checkpoint's `config.json` states.

    Attributes:
        key: Its name there.
        default: Where it is missing.
    """

    key: str
    default: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A published model, or a family of them.

    Everything that a rule states must hold of a checkpoint; a rule that states nothing is only
    taken by name.

    Attributes:
        name: What `recipe` calls it.
        scorer: The `type` of scorer that serves it.
        models: Whose it is, for people.
        architectures: One of these is in `config.json`.
        model_types: The `model_type` there is one of these.
        tensors: All of these are in the checkpoint.
        missing: None of these is.
        names: The model's name matches one of these patterns; in lower case.
        settings: Fields of the scorer's configuration. A value may be `FromConfig`.
        source: Where the recipe was read.
        note: Where it deviates, and what to mind.
    """

    name: str
    scorer: str
    models: str
    architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str
    note: str = ""

    def fits(self, checkpoint: Checkpoint, model_name: str) -> bool:
        """Whether a checkpoint is what this rule is about."""
        stated = model_settings(checkpoint)
        architectures = stated.get("architectures") or ()
        if self.architectures and not set(self.architectures) & {*map(str, architectures)}:
            return False
        if self.model_types and stated.get("model_type") not in self.model_types:
            return False
        held = checkpoint.tensor_files if self.tensors or self.missing else {}
        if any(name not in held for name in self.tensors) or any(n in held for n in self.missing):
            return False
        names = [model_name, str(stated.get("_name_or_path", "")).rpartition("/")[2]]
        if self.names and not any(fnmatchcase(n.lower(), p) for n in names for p in self.names):
            return False
        return bool(self.architectures or self.tensors or self.names)

    def resolved(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The settings for one checkpoint."""
        stated = model_settings(checkpoint)
        return {
            key: stated.get(value.key, value.default) if isinstance(value, FromConfig) else value
            for key, value in self.settings.items()
        }


def rule_named(rules: Mapping[str, Rule], name: str, scorer: str) -> Rule:
    """The rule of a name.

    Raises:
        ConfigError: If there is none, or it is for another type of scorer.
    """
    rule = rules.get(name)
    if rule is None:
        known = ", ".join(sorted(r.name for r in rules.values() if r.scorer == scorer))
        raise ConfigError(f"recipe: {name!r} is unknown; for type {scorer} there are {known}")
    if rule.scorer != scorer:
        raise ConfigError(f"recipe: {name!r} is for type: {rule.scorer}, not {scorer}")
    return rule
