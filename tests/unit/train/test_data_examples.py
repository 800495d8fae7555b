"""Data sets under their usual column names and formats, and errors that say where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewardsvc.policy_client.train.data import DataError, load_examples

ROWS = [{"question": "1+1=", "solution": 2, "level": "easy"}, {"question": "2+2=", "solution": "4"}]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["list", "jsonl", "json", "parquet", "folder", "saved"])
def test_every_format_gives_the_same_examples(tmp_path: Path, form: str) -> None:
    rows = [{**row, "solution": str(row["solution"])} for row in ROWS]
    source: Any = rows
    if form == "jsonl":
        source = write_jsonl(tmp_path / "data.jsonl", rows)
    elif form == "folder":
        write_jsonl(tmp_path / "train.jsonl", rows)
        source = tmp_path
    elif form == "json":
        source = tmp_path / "data.json"
        source.write_text(json.dumps(rows))
    elif form == "parquet":
        source = tmp_path / "data.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source)
    elif form == "saved":
        datasets = pytest.importorskip("datasets", reason="optional")
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
        source = str(tmp_path / "saved")
    examples = load_examples(source)
    assert [example.prompt for example in examples] == ["1+1=", "2+2="]
    assert [example.answer for example in examples] == ["2", "4"]
    assert [dict(example.metadata) for example in examples] == [{"level": "easy"}, {}]
    assert len(load_examples(source, limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        ({"prompt": "p", "response": "c"}, "completion", "c"),
        ({"instruction": "p", "output": "c"}, "prompt", "p"),
        ({"prompt": "p", "answer": 3.5}, "answer", "3.5"),
        ({"prompt": "p", "answer": [1, 2]}, "answer", "[1, 2]"),
        ({"prompt": "p", "answer": "7", "solution": "long"}, "answer", "7"),
        ({"prompt": "p", "answer": "7", "solution": "long"}, "metadata", {"solution": "long"}),
        ({"prompt": "p", "reward_model": {"ground_truth": "9"}}, "answer", "9"),
        ({"prompt": "p", "metadata": '{"n": 1}', "extra": 2}, "metadata", {"n": 1, "extra": 2}),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2}, "margin", 2.0),
        ({"prompt": "p", "completion": None}, "completion", None),
        (
            {"prompt": [{"role": "user", "content": "hi", "name": None}]},
            "prompt",
            [{"role": "user", "content": "hi"}],
        ),
    ],
)
def test_columns_take_their_usual_names(row: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(load_examples([row])[0], field) == expected


def test_messages_split_before_the_last_turn_of_the_assistant() -> None:
    turns = [
        {"role": role, "content": str(i)}
        for i, role in enumerate(["system", "user", "assistant", "user", "assistant"])
    ]
    example = load_examples([{"messages": turns}])[0]
    assert example.prompt == turns[:4]
    assert example.completion == turns[4:]


def test_pairs_without_a_prompt_share_the_start_of_their_conversations() -> None:
    user = {"role": "user", "content": "q"}
    good, bad = ({"role": "assistant", "content": text} for text in ("good", "bad"))
    example = load_examples([{"chosen": [user, good], "rejected": [user, bad]}])[0]
    assert (example.prompt, example.chosen, example.rejected) == ([user], [good], [bad])
    same = load_examples([{"chosen": [user, good], "rejected": [user, good]}])[0]
    assert (same.prompt, same.chosen, same.rejected) == ([user], [good], [good])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["line 3", "not JSON"]),
        ("[1]", ["line 3", "object"]),
        ('{"prompt": 5}', ["line 3", "'prompt'", "5"]),
        ('{"prompt": [{"role": "user"}]}', ["line 3", "'prompt', message 0", "content"]),
        ('{"chosen": "x"}', ["line 3", "'rejected' is missing"]),
        ('{"messages": [{"role": "user", "content": "x"}]}', ["line 3", "'messages'", "assistant"]),
        ('{"prompt": "x", "margin": "big"}', ["line 3", "'margin'", "'big'"]),
        ('{"prompt": "x", "margin": NaN}', ["line 3", "'margin'", "nan"]),
        ('{"prompt": "x", "metadata": "{"}', ["line 3", "'metadata'", "JSON"]),
        ('{"prompt": "x", "metadata": [1]}', ["line 3", "'metadata'", "[1]"]),
    ],
)
def test_errors_name_file_line_and_column(tmp_path: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    with pytest.raises(DataError) as error:
        load_examples(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_missing_column_is_named_with_its_row_and_its_other_names() -> None:
    examples = load_examples([{"prompt": "a", "completion": ""}, {"prompt": "b"}])
    with pytest.raises(DataError, match=r"row 1: column 'completion'.*response, output"):
        examples.require("prompt", "completion")
    assert examples.require("prompt") is examples


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gone.jsonl", None),
        ("data.csv", b"a,b"),
        ("data.parquet", b"no"),
        ("data.json", b"{}"),
        ("empty.jsonl", b""),
        ("latin.jsonl", b'{"prompt": "\xe9"}'),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_examples(path)


def test_folder_without_the_split_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match="'test'"):
        load_examples(tmp_path, split="test")
