"""What goes to a worker and comes back is what was sent, and calls are divided sensibly."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.convert import batch_to_proto, sample_from_proto, sequences_from_proto
from rewardsvc.errors import ItemErrorCode
from rewardsvc.scoring import Sample, Score
from rewardsvc.scoring.tokens import TokenScores, TokenSequence
from rewardsvc.scoring.types import Message
from rewardsvc.verdict import Verdict
from rewardsvc.workers.dispatch import AFFINITY_SLACK, SPLIT_ABOVE, divide
from rewardsvc.workers.wire import (
    sample_to_proto,
    scores_from_proto,
    sequence_to_proto,
    token_scores_from_proto,
)

plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple)
chats = st.lists(st.builds(Message, plain, plain), min_size=1, max_size=3).map(tuple)
texts = st.one_of(plain, chats, ids)
numbers = st.floats(-1e6, 1e6, width=32)
scores = st.one_of(
    st.builds(
        Score,
        value=numbers,
        components=st.dictionaries(st.sampled_from(["a", "a/b", "c"]), numbers),
        steps=st.lists(numbers, max_size=3).map(tuple),
        verdict=st.one_of(st.none(), st.sampled_from(Verdict)),
        explanation=plain,
    ),
    st.builds(
        Score.failed, st.sampled_from(ItemErrorCode), plain.filter(bool), retryable=st.booleans()
    ),
)


@given(
    st.builds(
        Sample,
        prompt=texts,
        completion=texts,
        answer=st.one_of(st.none(), plain),
        tests_json=st.one_of(st.none(), plain),
        rubric=st.one_of(st.none(), plain),
        id=plain,
        metadata=st.dictionaries(plain, st.one_of(st.integers(), plain, st.booleans())),
    )
)
def test_samples_arrive_as_they_were_sent(sample: Sample) -> None:
    assert sample_from_proto(sample_to_proto(sample)) == sample


@given(st.lists(scores, min_size=1, max_size=6))
def test_scores_come_back_as_they_were_given(given_scores: list[Score]) -> None:
    assert scores_from_proto(batch_to_proto(given_scores, "v")) == given_scores


def test_log_probs_come_back_to_the_sequences_they_belong_to() -> None:
    from rewardsvc.convert import token_scores_to_proto
    from rewardsvc.errors import ItemError

    sequences = [
        TokenSequence(prompt_ids=np.int32([1, 2]), completion_ids=np.int32(range(count)))
        for count in (3, 0, 2, 1)
    ]
    messages = [sequence_to_proto(sequence) for sequence in sequences]
    back, indices, failed = sequences_from_proto(messages)
    assert (indices, failed) == ([0, 1, 2, 3], {})
    assert [b.completion_ids.tolist() for b in back] == [[0, 1, 2], [], [0, 1], [0]]
    error = ItemError(ItemErrorCode.TOO_LONG, "too long")
    answers = {
        i: TokenScores(
            logprobs=np.full(len(s.completion_ids), -i, np.float32),
            entropies=np.full(len(s.completion_ids), i, np.float32),
        )
        for i, s in enumerate(sequences)
    }
    answers[2] = TokenScores(error=error)
    reply = token_scores_to_proto(messages, answers, "v", True)
    found = token_scores_from_proto(reply, sequences)
    assert [f.logprobs.tolist() for f in found] == [[0, 0, 0], [], [], [-3]]
    assert [f.entropies.tolist() for f in found] == [[0, 0, 0], [], [], [3]]
    assert [f.error for f in found] == [None, None, error, None]


class FakeWorker:
    """Has a load, and nothing else."""

    def __init__(self, outstanding: int = 0) -> None:
        self.outstanding = outstanding


def spread(samples: list[Sample], workers: list[Any]) -> list[list[int]]:
    parts = {part.worker: part.indices for part in divide(samples, workers)}
    return [parts.get(worker, []) for worker in workers]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), min_size=1, max_size=100),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=4),
)
def test_every_sample_goes_to_exactly_one_worker(
    rows: list[tuple[int, int]], loads: list[int]
) -> None:
    samples = [Sample(prompt=f"p{prompt}", completion="x" * size) for prompt, size in rows]
    found = spread(samples, [FakeWorker(load) for load in loads])
    assert sorted(i for part in found for i in part) == [*range(len(samples))]


def test_completions_of_one_prompt_stay_together_unless_there_are_many() -> None:
    workers = [FakeWorker(), FakeWorker()]
    group = [Sample(prompt="p", completion=str(i)) for i in range(SPLIT_ABOVE)]
    assert sorted(map(len, spread(group, workers))) == [0, SPLIT_ABOVE]
    many = [Sample(prompt="p", completion=str(i)) for i in range(1000)]
    assert sorted(map(len, spread(many, workers))) == [500, 500]
    (part,) = divide(many, workers, split_groups=False)
    assert len(part.indices) == 1000


def test_loaded_worker_gets_nothing_while_another_is_idle() -> None:
    samples = [Sample(prompt=f"p{i}", completion="x") for i in range(20)]
    assert spread(samples, [FakeWorker(10 * AFFINITY_SLACK), FakeWorker()]) == [[], [*range(20)]]
