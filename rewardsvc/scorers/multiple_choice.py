"""`multiple_choice`: does the completion choose the right letter?

Reads the letter from `answer`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewardsvc.scorers._judged import JudgedScorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.verifiers.multiple_choice import MAX_CHOICES
from rewardsvc.verifiers.multiple_choice import MultipleChoice as MultipleChoiceVerifier


class MultipleChoiceConfig(ScorerConfigBase):
    """`{type: multiple_choice, num_choices: 10}`.

    Attributes:
        num_choices: How many there are, named A, B, C and so on.
    """

    type: Literal["multiple_choice"]
    num_choices: int = Field(default=4, ge=2, le=MAX_CHOICES)


class MultipleChoice(JudgedScorer):
    """1.0 for the right letter, else 0.0."""

    Config = MultipleChoiceConfig

    def __init__(self, config: MultipleChoiceConfig, env: BuildEnv) -> None:
        super().__init__(MultipleChoiceVerifier(num_choices=config.num_choices), env)
