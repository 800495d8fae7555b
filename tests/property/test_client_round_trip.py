"""What goes into a message comes out of it, and a job gives every sample its own answer."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.policy_client import ItemScore, RetryPolicy, ScoreItem, Verdict
from rewardsvc.policy_client.client.addresses import AddressPool
from rewardsvc.policy_client.client.calls import ScoreJob
from rewardsvc.policy_client.client.decode import decode_items
from rewardsvc.policy_client.client.encode import encode_sample
from rewardsvc.policy_client.client.errors import RpcFailure
from rewardsvc.policy_client.client.jobs import JobEnv
from rewardsvc.policy_client.client.scores import batch_of
from rewardsvc.policy_client.client.settings import ClientSettings
from rewardsvc.v1 import reward_pb2 as pb

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
).filter(lambda value: "Infinity" not in json.dumps(value))
any_text = st.text(st.characters(), max_size=20)


def is_unicode(*texts: str | None) -> bool:
    return all(text is None or text == text.encode("utf-8", "ignore").decode() for text in texts)


@given(any_text, any_text, st.none() | any_text, st.dictionaries(st.text(max_size=4), json_values))
def test_a_sample_is_sent_as_it_is_or_not_at_all(
    prompt: str, completion: str, answer: str | None, metadata: dict[str, object]
) -> None:
    item = ScoreItem(prompt=prompt, completion=completion, answer=answer, metadata=metadata)
    if not is_unicode(prompt, completion, answer):
        with pytest.raises(ItemFailure) as failure:
            encode_sample(item)
        assert failure.value.error.code is ItemErrorCode.INVALID_SAMPLE
        return
    sample = pb.Sample.FromString(encode_sample(item).SerializeToString())
    assert (sample.prompt_text, sample.completion_text) == (prompt, completion)
    assert (sample.answer if sample.HasField("answer") else None) == answer
    assert json.loads(sample.metadata_json or "{}") == metadata


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_token_ids_round_trip(ids: list[int]) -> None:
    sample = encode_sample(ScoreItem(completion=ids))
    assert np.frombuffer(sample.completion_ids.ids, "<i4").tolist() == ids


rows = st.lists(
    st.tuples(
        st.none() | float32,
        st.none() | float32,
        st.lists(float32, max_size=3),
        st.none() | st.sampled_from(Verdict),
    ),
    max_size=8,
)


@given(rows)
def test_scores_round_trip(
    rows: list[tuple[float | None, float | None, list[float], Verdict | None]],
) -> None:
    nan = float("nan")
    batch = pb.ScoreBatch(
        values=np.array([nan if r[0] is None else r[0] for r in rows], "<f4").tobytes(),
        steps=np.array([step for r in rows for step in r[2]], "<f4").tobytes(),
        step_counts=np.array([len(r[2]) for r in rows], "<i4").tobytes(),
    )
    parts = np.array([nan if r[1] is None else r[1] for r in rows], "<f4").tobytes()
    batch.components.add(name="part", values=parts)
    for index, (value, _, _, verdict) in enumerate(rows):
        detail = batch.details.add(index=index)
        if verdict is not None:
            detail.verdict = pb.Verdict.Value(f"VERDICT_{verdict.name}")
        if value is None:
            detail.error.code = pb.ITEM_ERROR_CODE_NON_FINITE
    decoded = decode_items(batch, [str(index) for index in range(len(rows))])
    for items in (decoded, list(batch_of(decoded))):
        for item, (value, part, steps, verdict) in zip(items, rows, strict=True):
            assert item.value == value
            assert item.ok == (value is not None)
            assert item.components == ({} if part is None else {"part": part})
            assert item.steps.tolist() == steps
            assert item.verdict == verdict


@given(
    num_samples=st.integers(0, 30),
    max_samples=st.integers(1, 7),
    max_in_flight=st.integers(1, 4),
    data=st.data(),
)
def test_a_job_answers_every_sample_whatever_fails_on_the_way(
    num_samples: int, max_samples: int, max_in_flight: int, data: st.DataObject
) -> None:
    settings = ClientSettings(
        addresses=("a", "b"),
        max_samples_per_call=max_samples,
        max_in_flight=max_in_flight,
        retry=RetryPolicy(max_item_attempts=10**6),
    )
    pool = AddressPool(settings.addresses)
    env = JobEnv(settings=settings, pool=pool, started_at=0.0, timeout_s=1e9, rng=random.Random(0))
    job = ScoreJob(env, "s", [ScoreItem(completion=str(i)) for i in range(num_samples)])
    in_flight = []
    now, budget = 0.0, 20
    while not job.done:
        in_flight += job.starts(now)
        assert len(in_flight) <= max_in_flight
        if not in_flight:
            now += job.wait_s(now)
            continue
        attempt = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
        outcome = data.draw(st.sampled_from(["ok", "down", "full", "item"])) if budget else "ok"
        budget -= outcome != "ok"
        if outcome in ("down", "full"):
            code = "UNAVAILABLE" if outcome == "down" else "RESOURCE_EXHAUSTED"
            job.failed(attempt, RpcFailure(code, "", 0.1), now)
            continue
        request = attempt.request
        assert isinstance(request, pb.ScoreRequest)
        assert 1 <= len(request.samples) <= max_samples
        values = [float(sample.completion_text) for sample in request.samples]
        batch = pb.ScoreBatch()
        if outcome == "item":
            values[0] = float("nan")
            error = pb.ItemError(code=pb.ITEM_ERROR_CODE_SANDBOX_FAILURE, retryable=True)
            batch.details.add(index=0, error=error)
        batch.values = np.array(values, "<f4").tobytes()
        job.succeeded(attempt, pb.ScoreResponse(batch=batch), now)
    result = job.result()
    assert result.values.tolist() == list(range(num_samples))
    assert all(isinstance(item, ItemScore) and item.ok for item in result)
