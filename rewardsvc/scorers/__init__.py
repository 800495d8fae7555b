"""The table of scorer types, and where each lives. Modules are imported when they are first named.

Third parties add rows with an entry point in the group `rewardsvc.scorers`.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points

from rewardsvc.errors import ConfigError
from rewardsvc.scoring.scorer import Scorer

BUILTIN: dict[str, str] = {
    # learned rewards
    "orm": "rewardsvc.scorers.orm:Orm",
    "prm": "rewardsvc.scorers.prm:Prm",
    "pairwise": "rewardsvc.scorers.pairwise:Pairwise",
    "causal_lm": "rewardsvc.scorers.causal_lm:CausalLm",
    # verifiers
    "math": "rewardsvc.scorers.math:Math",
    "code": "rewardsvc.scorers.code:Code",
    "format": "rewardsvc.scorers.format:Format",
    "countdown": "rewardsvc.scorers.countdown:Countdown",
    "exact": "rewardsvc.scorers.exact:Exact",
    "regex": "rewardsvc.scorers.regex_match:Regex",
    "multiple_choice": "rewardsvc.scorers.multiple_choice:MultipleChoice",
    "json_schema": "rewardsvc.scorers.json_schema:JsonSchema",
    "instructions": "rewardsvc.scorers.instructions:Instructions",
    "language": "rewardsvc.scorers.language:Language",
    "verifier": "rewardsvc.scorers.verifier:Verifier",
    "python": "rewardsvc.scorers.python_function:PythonFunction",
    # shapes of the text
    "overlong": "rewardsvc.scorers.overlong:Overlong",
    "repetition": "rewardsvc.scorers.repetition:Repetition",
    "length_penalty": "rewardsvc.scorers.length_penalty:LengthPenalty",
    "cosine_length": "rewardsvc.scorers.cosine_length:CosineLength",
    # combinators
    "sum": "rewardsvc.scoring.combinators.sum:Sum",
    "product": "rewardsvc.scoring.combinators.product:Product",
    "min": "rewardsvc.scoring.combinators.extremes:Min",
    "max": "rewardsvc.scoring.combinators.extremes:Max",
    "ensemble": "rewardsvc.scoring.combinators.ensemble:Ensemble",
    "clip": "rewardsvc.scoring.combinators.clip:Clip",
    "normalize": "rewardsvc.scoring.combinators.normalize:Normalize",
}
"""`type` in the configuration → "module:class"."""

ENTRY_POINT_GROUP = "rewardsvc.scorers"


def scorer_types() -> list[str]:
    """All known types, built-in and installed, sorted."""
    return sorted({*BUILTIN, *(e.name for e in entry_points(group=ENTRY_POINT_GROUP))})


def scorer_class(type_name: str) -> type[Scorer]:
    """The class behind a `type`.

    Raises:
        ConfigError: If there is no such type; names the closest ones.
    """
    target = BUILTIN.get(type_name)
    if target is None:
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            if entry.name == type_name:
                target = entry.value
                break
        else:
            close = difflib.get_close_matches(type_name, scorer_types(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(scorer_types())}"
            raise ConfigError(f"type: unknown scorer type {type_name!r}; {hint}")
    module, _, name = target.partition(":")
    found = getattr(import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, Scorer)):
        raise ConfigError(f"type: {type_name!r} is {target}, which is not a Scorer")
    return found
