"""Writes docs/scorers.md from the scorers' configuration models. `--check` only compares.

Field texts come from the models' docstrings, so that the page cannot drift from the code.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from rewardsvc.scorers import BUILTIN, scorer_class
from rewardsvc.scoring.config import ScorerConfigBase

PAGE = Path(__file__).parents[1] / "docs" / "scorers.md"

HEADER = """# Scorers

<!-- Written by scripts/gen_scorer_docs.py from the configuration models; edit their docstrings. -->

Every entry under `scorers:` in the server's file has a `type` from this page. Scorers that are
built on others name them under `of`, or hold them in place:

```yaml
scorers:
  math: {type: math}
  rlvr:
    type: sum
    of:
      math: 1.0
      think: {type: format, preset: think, weight: 0.1}    # served as "rlvr/think" as well
    clip: [-1, 1]
```

An error of a child is the parent's error; it is never taken for 0. A package can add types with an
entry point in the group `rewardsvc.scorers`.
"""


def main() -> None:
    """Writes the page, or with --check fails if it is not what would be written."""
    text = HEADER + "".join(map(_section, BUILTIN))
    if "--check" in sys.argv:
        if PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/scorers.md is out of date; run scripts/gen_scorer_docs.py")
        return
    PAGE.write_text(text, encoding="utf-8")


def _section(type_name: str) -> str:
    scorer = scorer_class(type_name)
    module = import_module(scorer.__module__).__doc__ or ""
    fields = {n: f for n, f in scorer.Config.model_fields.items() if n != "type"}
    texts = _field_texts(scorer.Config)
    lines = [f"\n## `{type_name}`\n", _first_paragraphs(module, type_name), ""]
    if fields:
        lines += ["| field | values | default | |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = _default(field)
        text = texts.get(name, "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(field.annotation)} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _first_paragraphs(doc: str, type_name: str) -> str:
    body = re.sub(rf"^`{type_name}`: ?", "", doc).strip()
    return body[:1].upper() + body[1:]


def _field_texts(model: type[ScorerConfigBase]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        section = (cls.__doc__ or "").partition("Attributes:\n")[2]
        for match in re.finditer(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE):
            texts[match[1]] = " ".join(match[2].split())
    return texts


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined:
        value = field.get_default(call_default_factory=True)
    return "" if value is None else f"`{str(value).lower() if value is not True else 'true'}`"


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(_type(a) for a in get_args(annotation) if a is not NoneType)
    if hasattr(annotation, "__members__"):
        return ", ".join(f"`{value}`" for value in annotation.__members__.values())
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _type(get_args(annotation)[0])
    if origin is dict:
        values = get_args(annotation)[1]
        return "mapping" if values is Any else f"mapping to {_type(values)}"
    if origin in (list, tuple):
        inner = {_type(a) for a in get_args(annotation) if a is not Ellipsis}
        return f"list of {' or '.join(sorted(inner))}"
    return {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


if __name__ == "__main__":
    main()
