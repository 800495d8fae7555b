"""The configuration of a combinator over a plain list of scorers."""

from __future__ import annotations

from pydantic import Field

from rewardsvc.scoring.config import ScorerConfigBase


class GroupConfig(ScorerConfigBase):
    """Base of `{type: …, of: [a, b, c]}`.

    Attributes:
        of: Names of scorers, in the order in which ties are broken.
    """

    of: list[str] = Field(min_length=1)

    def children(self) -> tuple[str, ...]:
        """The scorers of the list."""
        return tuple(self.of)
