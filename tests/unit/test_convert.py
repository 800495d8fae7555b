"""Protobuf to our types and back."""

import math

import numpy as np
import pytest

from rewardsvc.convert import (
    batch_to_proto,
    merge,
    sample_from_proto,
    samples_from_proto,
    sequences_from_proto,
    token_scores_to_proto,
)
from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.scoring.tokens import TokenScores
from rewardsvc.scoring.types import Message, Score, Verdict
from rewardsvc.v1 import reward_pb2 as pb


def ids(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def test_text_messages_and_token_ids_all_arrive() -> None:
    sample = sample_from_proto(
        pb.Sample(
            id="7",
            prompt_messages=pb.Messages(messages=[pb.Message(role="user", content="hi")]),
            completion_ids=pb.TokenIds(ids=ids(1, 2, 3)),
            answer="",
            metadata_json='{"n": 1, "x": 1.0}',
        )
    )
    assert sample.prompt == (Message("user", "hi"),)
    assert sample.completion == (1, 2, 3)
    assert sample.answer == ""
    assert sample.rubric is None
    assert sample.metadata == {"n": 1, "x": 1.0}
    assert isinstance(sample.metadata["n"], int)


def test_an_empty_completion_is_a_completion_and_none_is_not() -> None:
    assert sample_from_proto(pb.Sample(completion_text="")).completion == ""
    with pytest.raises(ItemFailure, match="completion: missing"):
        sample_from_proto(pb.Sample(prompt_text="x"))


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (pb.Sample(completion_ids=pb.TokenIds(ids=b"abc")), "completion_ids: 3 bytes"),
        (pb.Sample(completion_text="x", metadata_json="{"), "metadata_json: not JSON"),
        (pb.Sample(completion_text="x", metadata_json="[1]"), "metadata_json: must be a JSON obj"),
        (pb.Sample(completion_text="x", metadata_json="[" * 100_000), "metadata_json: not JSON"),
        (pb.Sample(completion_text="x", id="i" * 257), "id: 257 bytes"),
    ],
)
def test_a_malformed_sample_fails_alone(sample: pb.Sample, said: str) -> None:
    good = pb.Sample(completion_text="fine")
    samples, indices, failed = samples_from_proto([good, sample, good], {})
    assert [s.completion for s in samples] == ["fine", "fine"]
    assert indices == [0, 2]
    error = failed[1].error
    assert error is not None
    assert error.code is ItemErrorCode.INVALID_SAMPLE
    assert said in error.message


def test_no_reward_is_nan_on_the_wire_and_never_zero() -> None:
    scores = [
        Score(value=0.0, verdict=Verdict.WRONG_ANSWER),
        Score.failed(ItemErrorCode.MODEL_FAILURE, "out of memory", retryable=True),
        Score(value=1.5, components={"a": 2.0}, steps=(0.5, 1.0)),
    ]
    batch = batch_to_proto(scores, "v3")
    values = np.frombuffer(batch.values, "<f4")
    assert values[0] == 0.0
    assert math.isnan(values[1])
    assert values[2] == 1.5
    assert batch.version == "v3"
    (component,) = batch.components
    assert component.name == "a"
    np.testing.assert_array_equal(
        np.frombuffer(component.values, "<f4"), np.array([np.nan, np.nan, 2.0], "f4")
    )
    assert np.frombuffer(batch.step_counts, "<i4").tolist() == [0, 0, 2]
    assert np.frombuffer(batch.steps, "<f4").tolist() == [0.5, 1.0]
    assert [d.index for d in batch.details] == [0, 1]
    assert batch.details[0].verdict == pb.VERDICT_WRONG_ANSWER
    assert not batch.details[0].HasField("error")
    assert batch.details[1].error.code == pb.ITEM_ERROR_CODE_MODEL_FAILURE
    assert batch.details[1].error.retryable


def test_explanations_that_quote_broken_text_still_go_out() -> None:
    batch = batch_to_proto([Score(value=0.0, explanation="got \ud800")], "")
    assert batch.details[0].explanation == "got ?"


def test_merge_keeps_the_order_of_the_request() -> None:
    failure = Score.failed(ItemErrorCode.TOO_LONG, "x")
    merged = merge(4, [1, 3], [Score(value=1.0), Score(value=3.0)], {0: failure, 2: failure})
    assert [s.value for s in merged] == [None, 1.0, None, 3.0]


def test_a_failed_sequence_is_nan_for_each_of_its_tokens() -> None:
    messages = [
        pb.TokenSequence(prompt_ids=ids(1), completion_ids=ids(2, 3)),
        pb.TokenSequence(prompt_ids=b"", completion_ids=ids(2, 3, 4)),
        pb.TokenSequence(prompt_ids=ids(1), completion_ids=b""),
    ]
    good, indices, failed = sequences_from_proto(messages)
    assert indices == [0, 2]
    assert "prompt_ids: empty" in failed[1].message
    assert good[0].completion_ids.tolist() == [2, 3]
    two = np.array([-1.0, -2.0], np.float32)
    answers = {
        0: TokenScores(logprobs=two, entropies=two),
        1: TokenScores(error=failed[1]),
        2: TokenScores(),
    }
    reply = token_scores_to_proto(messages, answers, "v", entropy=True)
    logprobs = np.frombuffer(reply.logprobs, "<f4")
    assert logprobs[:2].tolist() == [-1.0, -2.0]
    assert np.isnan(logprobs[2:]).all()
    assert logprobs.size == 5
    assert len(reply.entropies) == len(reply.logprobs)
    assert [d.index for d in reply.details] == [1]
    assert not token_scores_to_proto(messages, answers, "v", entropy=False).entropies


def test_a_reply_about_nothing_is_empty() -> None:
    assert batch_to_proto([], "v").values == b""
    assert token_scores_to_proto([], {}, "v", entropy=True).logprobs == b""
