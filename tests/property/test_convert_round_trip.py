"""Whatever the scores, the columns on the wire say the same."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.convert import ERROR_CODES, VERDICTS, batch_to_proto, sample_from_proto
from rewardsvc.errors import ItemErrorCode
from rewardsvc.scoring.types import Sample, Score, Verdict
from rewardsvc.servicers.lenient import request_parser
from rewardsvc.v1 import reward_pb2 as pb

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec="utf-8"), max_size=8)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
good_scores = st.builds(
    Score,
    value=floats,
    components=st.dictionaries(names, floats, max_size=3),
    steps=st.lists(floats, max_size=4).map(tuple),
    verdict=st.none() | st.sampled_from(Verdict),
    explanation=texts,
)
failures = st.builds(Score.failed, st.sampled_from(ItemErrorCode), texts, retryable=st.booleans())


@given(st.lists(good_scores | failures, max_size=8), texts)
def test_scores_survive_the_wire(scores: list[Score], version: str) -> None:
    batch = pb.ScoreBatch.FromString(batch_to_proto(scores, version).SerializeToString())
    values = np.frombuffer(batch.values, "<f4")
    assert len(values) == len(scores)
    assert batch.version == version
    counts = np.frombuffer(batch.step_counts, "<i4") if batch.step_counts else [0] * len(scores)
    steps = np.frombuffer(batch.steps, "<f4")
    columns = {c.name: np.frombuffer(c.values, "<f4") for c in batch.components}
    details = {d.index: d for d in batch.details}
    offset = 0
    for i, score in enumerate(scores):
        if score.value is None:
            assert math.isnan(values[i])
        else:
            assert values[i] == score.value
        assert tuple(steps[offset : offset + counts[i]]) == score.steps
        offset += counts[i]
        for name, column in columns.items():
            if name in score.components:
                assert column[i] == score.components[name]
            else:
                assert math.isnan(column[i])
        detail = details.get(i, pb.ItemDetail())
        assert detail.explanation == score.explanation
        assert detail.verdict == (VERDICTS[score.verdict] if score.verdict else 0)
        assert detail.HasField("error") == (score.error is not None)
        if score.error:
            assert detail.error.code == ERROR_CODES[score.error.code]
            assert detail.error.message == score.error.message
            assert detail.error.retryable == score.error.retryable


@given(
    texts,
    texts,
    st.none() | texts,
    st.dictionaries(texts, json_values, max_size=3),
)
def test_samples_survive_the_wire(
    prompt: str, completion: str, answer: str | None, metadata: dict[str, object]
) -> None:
    import json

    message = pb.Sample(
        prompt_text=prompt, completion_text=completion, metadata_json=json.dumps(metadata)
    )
    if answer is not None:
        message.answer = answer
    sample = sample_from_proto(pb.Sample.FromString(message.SerializeToString()))
    expected = Sample(prompt=prompt, completion=completion, answer=answer, metadata=metadata)  # type: ignore[arg-type]
    assert sample == expected


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=6))
def test_bytes_that_are_not_utf8_cost_one_sample_and_no_other(texts: list[bytes]) -> None:
    placeholder = [f"<{i:08d}>" for i in range(len(texts))]
    request = pb.ScoreRequest(
        scorer="s",
        samples=[pb.Sample(id=f"id{i}", completion_text=p) for i, p in enumerate(placeholder)],
    )
    data = request.SerializeToString()
    for i, (mark, text) in enumerate(zip(placeholder, texts, strict=True)):
        filler = text.ljust(len(mark), b".")[: len(mark)]
        texts[i] = filler
        data = data.replace(mark.encode(), filler)
    parsed = request_parser(pb.ScoreRequest)(data)
    assert parsed.message.scorer == "s"
    for i, text in enumerate(texts):
        assert parsed.message.samples[i].id == f"id{i}"
        try:
            expected = text.decode("utf-8")
        except UnicodeDecodeError:
            assert "completion_text: not UTF-8" in parsed.bad[i]
        else:
            assert i not in parsed.bad
            assert parsed.message.samples[i].completion_text == expected
