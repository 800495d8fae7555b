"""Whether a text is one JSON document."""

from __future__ import annotations

import json
from typing import Any, NoReturn

MAX_JSON_CHARS = 1_000_000


def json_problem(text: str) -> str:
    """What keeps `text` from being one JSON object or array, in words; empty if nothing does.

    Stricter than Python: NaN and Infinity are refused. Numbers may have any number of digits.
    """
    if len(text) > MAX_JSON_CHARS:
        return f"{len(text)} characters, at most {MAX_JSON_CHARS}"
    try:
        # Numbers stay text: converting a million digits takes quadratic time.
        document: Any = json.loads(text, parse_constant=_refuse, parse_int=str, parse_float=str)
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"not JSON: {error}"
    if isinstance(document, dict | list):
        return ""
    return "neither an object nor an array"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")
