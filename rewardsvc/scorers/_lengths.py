"""How long a completion is, in the unit of a scorer's configuration."""

from __future__ import annotations

from enum import StrEnum

from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.scoring.types import Sample

LENGTH_FIELD = "completion_length"


class LengthUnit(StrEnum):
    """What is counted.

    TOKENS: token ids where the completion is sent as such, else `metadata.completion_length`; a
        text alone has no length in tokens.
    WORDS: what white space separates.
    CHARS: Unicode code points.
    """

    TOKENS = "tokens"
    WORDS = "words"
    CHARS = "chars"


def completion_length(sample: Sample, unit: LengthUnit) -> int:
    """The completion's length in `unit`.

    Raises:
        ItemFailure: INVALID_SAMPLE, if it cannot be known.
    """
    match unit:
        case LengthUnit.WORDS:
            return len(sample.completion_text.split())
        case LengthUnit.CHARS:
            return len(sample.completion_text)
        case LengthUnit.TOKENS:
            return _num_tokens(sample)


def _num_tokens(sample: Sample) -> int:
    completion = sample.completion
    if isinstance(completion, tuple) and completion and isinstance(completion[0], int):
        return len(completion)
    length = sample.metadata.get(LENGTH_FIELD)
    if isinstance(length, int) and not isinstance(length, bool) and length >= 0:
        return length
    if length is None and not completion:
        return 0
    problem = "missing" if length is None else f"{length!r}, not a number of tokens"
    raise ItemFailure(
        ItemErrorCode.INVALID_SAMPLE,
        f"metadata.{LENGTH_FIELD} is {problem}: send it or completion_ids, or configure "
        f"unit: {LengthUnit.WORDS} or {LengthUnit.CHARS}",
    )
