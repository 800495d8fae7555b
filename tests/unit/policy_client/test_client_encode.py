"""What is sent for what is given."""

import json

import numpy as np
import pytest

from rewardsvc.errors import ItemErrorCode, ItemFailure
from rewardsvc.policy_client import ScoreItem
from rewardsvc.policy_client.client.encode import (
    build_items,
    encode_sample,
    encode_samples,
    encode_sequences,
)

CHAT = [{"role": "user", "content": "hi"}]


def test_text_messages_and_ids_go_to_their_fields() -> None:
    sample = encode_sample(ScoreItem(prompt=CHAT, completion=[5, 6]))
    assert sample.WhichOneof("prompt") == "prompt_messages"
    assert [(m.role, m.content) for m in sample.prompt_messages.messages] == [("user", "hi")]
    assert sample.completion_ids.ids == np.array([5, 6], "<i4").tobytes()
    assert encode_sample(ScoreItem(completion="")).WhichOneof("completion") == "completion_text"


@pytest.mark.parametrize(
    "ids", [[1, 2], (1, 2), np.array([1, 2], np.int64), np.array([1, 2], np.uint16), range(1, 3)]
)
def test_ids_of_any_kind_are_little_endian_int32(ids: object) -> None:
    sample = encode_sample(ScoreItem(completion=ids))  # type: ignore[arg-type]
    assert sample.completion_ids.ids == b"\x01\0\0\0\x02\0\0\0"


def test_ids_of_another_library_are_read_through_tolist() -> None:
    class Tensor:
        def tolist(self) -> list[int]:
            return [7]

    assert encode_sample(ScoreItem(completion=Tensor())).completion_ids.ids == b"\x07\0\0\0"


def test_optional_fields_are_absent_unless_given() -> None:
    sample = encode_sample(ScoreItem(completion="c"))
    assert not any(sample.HasField(name) for name in ("answer", "tests_json", "rubric"))
    assert sample.metadata_json == ""
    sample = encode_sample(
        ScoreItem(completion="c", answer="", tests=[{"in": "1"}], metadata={"ä": 2**60})
    )
    assert sample.HasField("answer")
    assert json.loads(sample.tests_json) == [{"in": "1"}]
    assert json.loads(sample.metadata_json) == {"ä": 2**60}


def test_text_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    sample = encode_sample(ScoreItem(completion=[{"role": "assistant", "content": parts}]))
    assert sample.completion_messages.messages[0].content == "ab"


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (ScoreItem(completion="a\ud800"), "completion"),
        (ScoreItem(completion="a", prompt="\udfff"), "prompt"),
        (ScoreItem(completion="a", answer="\ud800"), "answer"),
        (ScoreItem(completion=[{"role": "user", "content": "\ud800"}]), "completion[0].content"),
        (ScoreItem(completion=None), "completion"),
        (ScoreItem(completion=[-1]), "-1"),
        (ScoreItem(completion=[2**31]), "2147483648"),
        (
            ScoreItem(completion=[{"role": "user", "content": [{"type": "image"}]}]),
            "completion[0].content",
        ),
    ],
)
def test_a_sample_that_cannot_be_sent_is_an_item_error(item: ScoreItem, named: str) -> None:
    with pytest.raises(ItemFailure) as failure:
        encode_sample(item)
    assert failure.value.error.code is ItemErrorCode.INVALID_SAMPLE
    assert named in failure.value.error.message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"completion": 3}, "completion"),
        ({"completion": b"bytes"}, "completion"),
        ({"completion": [1.5]}, "completion"),
        ({"completion": [[1], [2]]}, "completion"),
        ({"completion": [[1], [2, 3]]}, "completion"),
        ({"completion": [{"role": "user"}]}, "content"),
        ({"completion": [{"role": "user", "content": 5}]}, "completion[0].content"),
        ({"completion": "c", "answer": 5}, "answer"),
        ({"completion": "c", "metadata": {"x": object()}}, "metadata"),
        ({"completion": "c", "metadata": {"x": float("nan")}}, "metadata"),
        ({"completion": "c", "metadata": [1]}, "metadata"),
        ({"completion": "c", "tests": {1, 2}}, "tests"),
    ],
)
def test_a_wrong_type_raises_and_names_the_sample_and_the_field(
    fields: dict[str, object], named: str
) -> None:
    with pytest.raises(TypeError) as error:
        encode_samples([ScoreItem(completion="fine"), ScoreItem(**fields)])  # type: ignore[arg-type]
    assert str(error.value).startswith("sample 1: ")
    assert named in str(error.value)


def test_an_id_over_256_bytes_raises() -> None:
    encode_sample(ScoreItem(completion="c", id="x" * 256))
    with pytest.raises(ValueError, match="257 bytes"):
        encode_sample(ScoreItem(completion="c", id="x" * 257))


@pytest.mark.parametrize("name", ["prompts", "answers", "tests", "rubrics", "metadata", "ids"])
def test_a_wrong_length_names_the_field_and_both_lengths(name: str) -> None:
    columns = {name: ["a"]} if name != "prompts" else {}
    prompts = ["a"] if name == "prompts" else ["a", "b", "c"]
    with pytest.raises(ValueError, match=rf"{name} has 1 entries and completions has 3"):
        build_items(prompts, ["x", "y", "z"], columns)


def test_one_text_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match="completions is str"):
        build_items(["a"], "x", {})
    with pytest.raises(TypeError, match="answers is str"):
        build_items(["a"], ["x"], {"answers": "x"})


def test_a_sequence_without_a_prompt_is_an_item_error_and_keeps_its_length() -> None:
    messages, counts, errors = encode_sequences([[], [1]], [[2, 3], [4]])
    assert counts == [2, 1]
    assert list(errors) == [0]
    assert "prompt_ids is empty" in errors[0].message
    assert messages[1].completion_ids == b"\x04\0\0\0"
