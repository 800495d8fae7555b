"""One sample after another: what becomes of one that a scorer cannot judge."""

from __future__ import annotations

import pytest

from rewardsvc.errors import DeadlinePassedError, ItemErrorCode, ItemFailure
from rewardsvc.scoring.scorer import score_each
from rewardsvc.scoring.types import Sample, Score

SAMPLES = [Sample(completion=text) for text in ("1", "no reference", "one", "4")]


def number(sample: Sample) -> Score:
    if sample.completion == "no reference":
        raise ItemFailure(ItemErrorCode.BAD_REFERENCE, "answer is missing")
    return Score(value=float(str(sample.completion)))


def test_a_bug_is_the_error_of_its_sample(caplog: pytest.LogCaptureFixture) -> None:
    scores = score_each(SAMPLES, number)
    assert [score.value for score in scores] == [1.0, None, None, 4.0]
    missing, bug = scores[1].error, scores[2].error
    assert missing is not None
    assert bug is not None
    assert missing.code is ItemErrorCode.BAD_REFERENCE
    assert bug.code is ItemErrorCode.SCORER_EXCEPTION
    assert "ValueError: could not convert" in bug.message
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_what_is_about_the_call_ends_the_call() -> None:
    def late(sample: Sample) -> Score:
        raise DeadlinePassedError("the deadline passed")

    with pytest.raises(DeadlinePassedError):
        score_each(SAMPLES, late)
