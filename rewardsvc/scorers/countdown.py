"""`countdown`: does the expression reach the target with the given numbers?

Reads `metadata.numbers` (or `nums`), a list of integers, and `metadata.target`, an integer; where
there is no target in the metadata, `answer` is the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.scorers._verdicts import reference_of, score_of
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.scorer import Scorer, score_each
from rewardsvc.scoring.types import JsonValue, Sample, Score
from rewardsvc.verifiers.countdown import MAX_NUMBER_DIGITS
from rewardsvc.verifiers.countdown import Countdown as CountdownVerifier
from rewardsvc.verifiers.text import Extract

_NUMBERS_FIELDS = ("numbers", "nums")


class CountdownConfig(ScorerConfigBase):
    """`{type: countdown}`.

    Attributes:
        extract: Where the expression stands: last_line, answer_tag or whole.
        use_all: Whether each number must be used exactly once; else at most once.
        allow_sign: Whether numbers and parentheses may have a sign in front.
    """

    type: Literal["countdown"]
    extract: Extract = Extract.LAST_LINE
    use_all: bool = True
    allow_sign: bool = False


class Countdown(Scorer):
    """1.0 if the expression reaches the target, else 0.0."""

    Config = CountdownConfig

    def __init__(self, config: CountdownConfig, env: BuildEnv) -> None:
        self._verifier = CountdownVerifier(
            extract=config.extract, use_all=config.use_all, allow_sign=config.allow_sign
        )

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Evaluates each completion's expression exactly."""
        return score_each(samples, self._score_one)

    def _score_one(self, sample: Sample) -> Score:
        numbers, target = _numbers_of(sample), _target_of(sample)
        return score_of(self._verifier.verify(sample.completion_text, numbers, target))


def _numbers_of(sample: Sample) -> list[int]:
    for name in _NUMBERS_FIELDS:
        numbers = sample.metadata.get(name)
        if numbers is None:
            continue
        if not isinstance(numbers, Sequence) or isinstance(numbers, str):
            raise _bad(f"metadata.{name}", numbers, "a list of integers")
        return [_integer(f"metadata.{name}", number) for number in numbers]
    raise ItemFailure(
        ItemErrorCode.BAD_REFERENCE, "metadata.numbers is missing; send a list of integers"
    )


def _target_of(sample: Sample) -> int:
    target = sample.metadata.get("target")
    if target is not None:
        return _integer("metadata.target", target)
    text = reference_of(sample).strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= MAX_NUMBER_DIGITS):
        raise _bad("answer", text, "an integer, or send metadata.target")
    return int(text)


def _integer(name: str, value: JsonValue) -> int:
    """Columns of integers come as floats from data frames that had a gap in them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _bad(name, value, "integers")


def _bad(name: str, value: JsonValue, wanted: str) -> ItemFailure:
    return ItemFailure(ItemErrorCode.BAD_REFERENCE, f"{name} has {value!r:.80}; give {wanted}")
