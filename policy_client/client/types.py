"""What a client is given to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


class SupportsToList(Protocol):
    """An array or tensor of token ids, of any library."""

    def tolist(self) -> Any:
        """The same values as a list."""


TextLike: TypeAlias = "str | Sequence[Mapping[str, Any]] | Sequence[int] | SupportsToList | None"
"""Text, chat messages (mappings with `role` and `content`), or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreItem:
    """One thing to score.

    Attributes:
        completion: Text, chat messages or token ids.
        prompt: The same; empty where there is none.
        answer: The reference answer that a verifier checks against.
        tests: Test cases of a code verifier: a JSON document, as text or as Python values.
        rubric: What a judge should look for.
        metadata: Anything else a scorer may want; JSON values.
        id: Echoed in the answer; at most 256 bytes. Empty for the item's position.

    Example:
        >>> ScoreItem(prompt="1+1=", completion="2", answer="2", id="q17").answer
        '2'
    """

    completion: TextLike
    prompt: TextLike = ""
    answer: str | None = None
    tests: Any = None
    rubric: str | None = None
    metadata: Mapping[str, Any] | None = None
    id: str = ""
