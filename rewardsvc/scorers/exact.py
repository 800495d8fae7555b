"""`exact`: is the completion's answer the reference, text for text?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rewardsvc.scorers._verdicts import reference_of, score_of
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer, score_each
from rewardsvc.scoring.types import Sample, Score
from rewardsvc.verifiers.exact import ExactMatch
from rewardsvc.verifiers.text import Extract


class ExactConfig(ScorerConfigBase):
    """`{type: exact, extract: last_line}`.

    Attributes:
        extract: Where the answer stands: whole, last_line or answer_tag.
        ignore_case: Whether "Paris" equals "paris".
    """

    type: Literal["exact"]
    extract: Extract = Extract.WHOLE
    ignore_case: bool = False


class Exact(Scorer):
    """1.0 if the answer equals the reference up to white space, else 0.0."""

    Config = ExactConfig

    def __init__(self, config: ExactConfig, env: BuildEnv) -> None:
        self._verifier = ExactMatch(extract=config.extract, ignore_case=config.ignore_case)

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Compares each completion's answer with its reference."""
        return score_each(samples, self._score_one)

    def _score_one(self, sample: Sample) -> Score:
        return score_of(self._verifier.verify(sample.completion_text, reference_of(sample)))
