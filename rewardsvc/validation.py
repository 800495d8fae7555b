"""What pydantic finds wrong with a configuration, in our words.

Both the service's file and the trainers' are told of in this way. It stands beside `errors`, which
needs no pydantic, since the client imports that.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

LONGEST_VALUE = 80


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line for each thing that is wrong: the field, what was found, and what to do.

    Args:
        error: Of validating against `model`.
        model: Where fields and their descriptions are looked up.
        prefix: Of every field's name, such as "scorers.math".
    """
    return [
        _line(dict(item), model, [prefix] if prefix else [])
        for item in error.errors(include_url=False)
    ]


def _line(item: Mapping[str, Any], model: type[BaseModel], prefix: Sequence[str]) -> str:
    field = ".".join([*prefix, *map(str, item["loc"])])
    start = f"{field}: " if field else ""
    if item["type"] == "extra_forbidden":
        return f"{start}unknown field, set to {_short(item['input'])}; {_known(item, model)}"
    info = _field_at(item["loc"], model)
    about = f"; {info.description}" if info is not None and info.description else ""
    if item["type"] == "missing":
        return f"{start}missing{about or '; add it'}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):
        return f"{start}{message}"  # of a whole section; our own message names fields and values
    return f"{start}{message} (found {_short(item['input'])}){about}"


def _known(item: Mapping[str, Any], model: type[BaseModel]) -> str:
    """What the unknown field may have been meant to be."""
    *parents, name = item["loc"]
    names = sorted(
        info.alias or field
        for found in _models_at(parents, model)
        for field, info in found.model_fields.items()
    )
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else "remove it or correct its name"


def _models_at(loc: Sequence[str | int], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that may stand at a place: several for a union; none where that is unclear."""
    found = [model]
    for part in loc:
        fields = [info for one in found if (info := _field(one, part)) is not None]
        if fields:
            found = [one for info in fields for one in _models_in(info.annotation)]
        elif isinstance(part, str):
            # Of a tagged union, pydantic names the tag.
            found = [one for one in found if part in _tags(one)]
    return found


def _field_at(loc: Sequence[str | int], model: type[BaseModel]) -> FieldInfo | None:
    """The field of a place, or the innermost one around it."""
    for depth in range(len(loc), 0, -1):
        for one in _models_at(loc[: depth - 1], model):
            if (info := _field(one, loc[depth - 1])) is not None:
                return info
    return None


def _field(model: type[BaseModel], name: str | int) -> FieldInfo | None:
    for field, info in model.model_fields.items():
        if name in (field, info.alias):
            return info
    return None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model inside a type: itself, of an optional, a union, a list, a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _tags(model: type[BaseModel]) -> set[str]:
    """Texts that a field of the model may only be."""
    return {
        value
        for info in model.model_fields.values()
        if get_origin(info.annotation) is Literal
        for value in get_args(info.annotation)
        if isinstance(value, str)
    }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
