"""`regex`: does the completion's answer match a pattern?"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rewardsvc.scorers._judged import JudgedScorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.verifiers.regex_match import Match, RegexMatch
from rewardsvc.verifiers.safe_regex import DEFAULT_TIME_LIMIT_MS, SafePattern
from rewardsvc.verifiers.text import Extract


class RegexConfig(ScorerConfigBase):
    """`{type: regex, pattern: "(?i)as an AI", match: search}`.

    Attributes:
        pattern: A regular expression; "." matches newlines.
        match: Whether it must match some part of the answer (search) or all of it (full).
        ignore_case: Whether "paris" matches "Paris".
        extract: Where the answer stands: whole, last_line or answer_tag.
        time_limit_ms: Limit of one search, in processor time of the whole process; a sample that
            takes longer has no reward.
    """

    type: Literal["regex"]
    pattern: str = Field(min_length=1)
    match: Match = Match.SEARCH
    ignore_case: bool = False
    extract: Extract = Extract.WHOLE
    time_limit_ms: int = Field(default=DEFAULT_TIME_LIMIT_MS, ge=1, le=60_000)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        SafePattern(pattern)
        return pattern


class Regex(JudgedScorer):
    """1.0 if the answer matches, else 0.0."""

    Config = RegexConfig

    def __init__(self, config: RegexConfig, env: BuildEnv) -> None:
        super().__init__(RegexMatch(**config.model_dump(exclude={"type"})), env)
