"""Published reward models: tables of how each is recognised, and the settings that it wants.

A recipe is nothing but values for the fields of a scorer's configuration, so whatever a recipe
does can be written into a YAML file for a model that has none, and any field that the file gives
is taken over the recipe's.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

from rewardsvc.errors import ConfigError
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._model_config import ModelConfig
from rewardsvc.scorers.known.outcome import OUTCOME
from rewardsvc.scorers.known.pairwise import PAIRWISE
from rewardsvc.scorers.known.process import PROCESS
from rewardsvc.scorers.known.rule import Rule, rule_named

__all__ = ["RULES", "Rule", "recognise", "with_recipe"]

C = TypeVar("C", bound=ModelConfig)

AUTO, NONE = "auto", "none"

RULES: dict[str, Rule] = {rule.name: rule for rule in (*OUTCOME, *PROCESS, *PAIRWISE)}
"""By name; in the order in which they are tried."""

log = logging.getLogger(__name__)


def recognise(checkpoint: Checkpoint, model_name: str, scorer: str) -> Rule | None:
    """The first rule that fits a checkpoint, among those for a type of scorer."""
    for rule in RULES.values():
        if rule.scorer == scorer and rule.fits(checkpoint, model_name):
            return rule
    return None


def with_recipe(config: C, checkpoint: Checkpoint) -> C:
    """The configuration with the recipe's settings in the fields that it does not give.

    Raises:
        ConfigError: If the recipe is unknown, or does not go together with a given field.
    """
    if config.recipe == NONE:
        return config
    if config.recipe == AUTO:
        rule = recognise(checkpoint, Path(config.model).name, config.type)
        if rule is None:
            return config
        log.info("%s: recipe %s (%s)", config.model, rule.name, rule.source)
    else:
        rule = rule_named(RULES, config.recipe, config.type)
    settings = rule.resolved(checkpoint)
    given = {name: getattr(config, name) for name in config.model_fields_set}
    try:
        return type(config).model_validate({**settings, **given, "recipe": rule.name})
    except ValueError as error:
        raise ConfigError(
            f"recipe: {rule.name} does not go together with the fields given: {error}; change "
            "them, or set recipe: none"
        ) from None
