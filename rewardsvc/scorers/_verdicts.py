"""From a verifier's verdict to a score."""

from __future__ import annotations

import logging

from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.scoring.types import Sample, Score, Verdict
from rewardsvc.verifiers.types import ErrorKind
from rewardsvc.verifiers.types import Verdict as VerifierVerdict

log = logging.getLogger(__name__)

_RETRYABLE = frozenset({ErrorKind.VERIFIER_TIMEOUT, ErrorKind.SANDBOX_FAILURE})


def score_of(verdict: VerifierVerdict) -> Score:
    """The score that says what `verdict` says; an error where it has no reward."""
    if verdict.error is not None:
        return Score.failed(
            ItemErrorCode(verdict.error.value),
            verdict.explanation,
            retryable=verdict.error in _RETRYABLE,
        )
    return Score(
        value=verdict.reward,
        verdict=Verdict(verdict.status.value),
        explanation=verdict.explanation,
    )


def reference_of(sample: Sample) -> str:
    """The sample's reference answer.

    Raises:
        ItemFailure: BAD_REFERENCE, if it has none.
    """
    if sample.answer is None:
        raise ItemFailure(
            ItemErrorCode.BAD_REFERENCE, "answer is missing; send the reference answer"
        )
    return sample.answer


def broken(name: str, error: Exception) -> Score:
    """The score of a sample whose verifier raised, which none of them should; the log has it all.

    Args:
        name: Of the scorer.
        error: What was raised, while it is being handled.
    """
    log.exception("scorer %s failed on a sample", name)
    return Score.failed(ItemErrorCode.INTERNAL, f"{name} failed on this sample; see the log")
