"""One JSON document in a completion, read within bounds."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_DOCUMENT_CHARS = 200_000
MAX_DOCUMENT_DEPTH = 48
"""A validator descends several calls for each level."""

MAX_INTEGER_CHARS = 300
"""A larger one may not fit into the floats that a schema compares it with."""

_FENCE = "```"
_MAX_SHOWN_CHARS = 20


class DocumentError(ValueError):
    """The text is no document, or one beyond the bounds."""


def unfenced(text: str) -> str:
    """What a Markdown fence around the whole of `text` holds; `text` itself if there is none."""
    text = text.strip()
    if not text.startswith(_FENCE) or not text.endswith(_FENCE) or "\n" not in text:
        return text
    body = text.partition("\n")[2].removesuffix(_FENCE)
    return text if _FENCE in body else body.strip()


def read_document(text: str) -> Any:
    """The document as Python values.

    Raises:
        DocumentError: If `text` is not JSON as the standard has it (NaN and Infinity are not), is
            longer or deeper than the bounds above, or has a number that is too large for a float.
    """
    if len(text) > MAX_DOCUMENT_CHARS:
        raise DocumentError(f"{len(text)} characters, at most {MAX_DOCUMENT_CHARS}")
    try:
        document = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded)
    except RecursionError as error:
        raise DocumentError(f"nested deeper than {MAX_DOCUMENT_DEPTH}") from error
    except ValueError as error:
        raise DocumentError(f"not JSON: {error}") from error
    level = [document]
    for _ in range(MAX_DOCUMENT_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return document
    raise DocumentError(f"nested deeper than {MAX_DOCUMENT_DEPTH}")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_MAX_SHOWN_CHARS]} is too large")
    return number


def _bounded(text: str) -> int:
    if len(text) > MAX_INTEGER_CHARS:
        raise ValueError(f"an integer of {len(text)} characters, at most {MAX_INTEGER_CHARS}")
    return int(text)
