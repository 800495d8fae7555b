"""Reads a data set from JSONL, Parquet, a Hugging Face data set, or rows in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rewardsvc.policy_client.train.data.examples import DataError, Examples, parse_row

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


def load_examples(
    source: str | Path | list[dict[str, Any]], *, split: str = "train", limit: int | None = None
) -> Examples:
    """Reads a data set.

    Args:
        source: A file (`.jsonl`, `.ndjson`, `.json` with a list, `.parquet`), a folder with
            `<split>.jsonl` or `<split>.parquet` in it, a folder written by `datasets`, a hub id
            such as "org/name" or "org/name:config", or the rows themselves.
        split: Which part of a folder or hub data set.
        limit: Read only this many rows, from the first.

    Raises:
        DataError: Names the file, the line or row, the column and the fix.
    """
    if isinstance(source, list):
        name, rows = "rows", _numbered(source, "rows")
    else:
        name, rows = str(source), _read(source, split)
    parsed = [parse_row(row, f"{name}: {at}") for at, row in itertools.islice(rows, limit)]
    return Examples(parsed, source=name)


def _read(source: str | Path, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, row) for every row; the place is a line of a text file, else a row's number."""
    path = Path(source).expanduser()
    if path.is_dir():
        for suffix in SUFFIXES:
            if (path / f"{split}{suffix}").is_file():
                path = path / f"{split}{suffix}"
                break
    if path.is_file():
        if path.suffix in (".jsonl", ".ndjson"):
            return _read_jsonl(path)
        if path.suffix == ".json":
            return _numbered(_read_json(path), path)
        if path.suffix == ".parquet":
            return _numbered(_read_parquet(path), path)
        raise DataError(f"{path}: unknown kind of file; use {', '.join(SUFFIXES)}")
    if path.suffix in SUFFIXES or (not path.is_dir() and str(source).startswith((".", "/", "~"))):
        raise DataError(f"{path}: no such file")
    return _numbered(_read_hub(str(source), split), path)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}: line {number}: not JSON: {error}") from error
                yield f"line {number}", _check_row(row, f"{path}: line {number}")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8: {error}; convert it") from error


def _read_json(path: Path) -> Iterable[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: a list of objects is needed, got {type(rows).__name__}")
    return rows


def _read_parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error


def _read_hub(source: str, split: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source}: not a file, and reading a Hugging Face data set needs `datasets`; "
            'pip install "rewardsvc[datasets]"'
        ) from error
    try:
        if Path(source).is_dir() and (
            (Path(source) / "dataset_info.json").exists()
            or (Path(source) / "dataset_dict.json").exists()
        ):
            found = datasets.load_from_disk(source)
            if isinstance(found, datasets.DatasetDict):
                found = found[split]
        else:
            repository, _, config = source.partition(":")
            found = datasets.load_dataset(repository, config or None, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: split {split!r} cannot be loaded: {error}") from error
    return found  # type: ignore[no-any-return]


def _numbered(rows: Iterable[Any], name: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(rows):
        yield f"row {number}", _check_row(row, f"{name}: row {number}")


def _check_row(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: an object with columns is needed, got {row!r}")
    return row
