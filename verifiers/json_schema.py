"""The completion is one JSON document that a schema allows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rewardsvc.verifiers.base import Verifier
from rewardsvc.verifiers.json_document import DocumentError, read_document, unfenced
from rewardsvc.verifiers.safe_regex import PatternTimeoutError, SafePattern
from rewardsvc.verifiers.text import after_thinking
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict

MAX_SCHEMA_CHARS = 100_000
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_UNSUPPORTED = "patternProperties"
_MAX_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSchema(Verifier):
    """Validates against a JSON Schema of any draft that the jsonschema package knows.

    The document may stand in one Markdown fence, and nothing else may stand beside it. References
    lead only inside the schema: nothing is ever fetched. `format` is an annotation, as the standard
    has it by default. `patternProperties` is refused, since other keywords match it with patterns
    that cannot be stopped; `pattern` works, with a time limit. A schema is trusted as far as its
    own cost goes: references that double at each of thirty levels take exponential time.

    Attributes:
        schema: For all completions; None to have one given with each.

    Raises:
        ValueError: If `schema` is no schema, or uses what is not supported.
        ImportError: If the jsonschema package is missing.
    """

    schema: Mapping[str, Any] | None = None
    _text: str | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.schema is not None:
            text = _schema_text(self.schema)
            _validator(text)
            object.__setattr__(self, "_text", text)

    def verify(self, completion: str, schema: Mapping[str, Any] | str | None = None) -> Verdict:
        """Whether the completion, outside of its thinking, is a document that the schema allows.

        Args:
            completion: Any text.
            schema: Of this sample, as a mapping or as JSON text; left out where the verifier has
                one.

        Returns:
            ACCEPTED, NO_ANSWER (no JSON document) or WRONG_ANSWER; without a reward BAD_REFERENCE
            if there is no usable schema and VERIFIER_TIMEOUT if a `pattern` had to be stopped.
        """
        try:
            validator = _validator(self._schema_for(schema))
        except ValueError as error:
            return Verdict.failed(ErrorKind.BAD_REFERENCE, str(error))
        said = after_thinking(completion)
        if said is None:
            return Verdict.rejected("it ends inside its thinking", status=Status.NO_ANSWER)
        try:
            document = read_document(unfenced(said))
        except DocumentError as error:
            return Verdict.rejected(str(error), status=Status.NO_ANSWER)
        return _validated(validator, document)

    def _schema_for(self, schema: Mapping[str, Any] | str | None) -> str:
        if self._text is not None:
            return self._text
        if schema is None:
            raise ValueError("schema is missing; send one, or configure it")
        return schema if isinstance(schema, str) else _schema_text(schema)


def _validated(validator: Any, document: Any) -> Verdict:
    from referencing.exceptions import Unresolvable

    try:
        error = next(validator.iter_errors(document), None)
    except PatternTimeoutError as timeout:
        return Verdict.failed(ErrorKind.VERIFIER_TIMEOUT, str(timeout))
    except Unresolvable as unresolvable:
        return Verdict.failed(
            ErrorKind.BAD_REFERENCE, f"schema: a reference leads nowhere: {unresolvable}"
        )
    except RecursionError:
        return Verdict.failed(ErrorKind.BAD_REFERENCE, "schema: it refers to itself without end")
    except Exception as broken:
        # A reference to what is no schema, a type that a draft does not know: the packages find
        # out when they get there, each in its own way.
        why = f"schema: it cannot be applied: {type(broken).__name__}: {broken}"
        return Verdict.failed(ErrorKind.BAD_REFERENCE, why[:_MAX_SHOWN_CHARS])
    if error is None:
        return Verdict.accepted("the schema allows it")
    return Verdict.rejected(f"{error.json_path}: {error.message}"[:_MAX_SHOWN_CHARS])


def _schema_text(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"schema: not JSON: {error}") from error


@lru_cache(maxsize=128)
def _validator(text: str) -> Any:
    """The validator of a schema's text; cached, since many samples share one.

    Raises:
        ValueError: If it is no schema, or one that is not supported.
    """
    try:
        import jsonschema  # type: ignore[import-untyped]
        from referencing import Registry
    except ImportError as error:
        raise ImportError("JSON schemas need the jsonschema package: pip install jsonschema") from (
            error
        )
    if len(text) > MAX_SCHEMA_CHARS:
        raise ValueError(f"schema: {len(text)} characters, at most {MAX_SCHEMA_CHARS}")
    try:
        schema = read_document(text)
    except DocumentError as error:
        raise ValueError(f"schema: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError("schema: give an object")
    base = _draft(schema)
    try:
        base.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"schema: {error.message}"[:_MAX_SHOWN_CHARS]) from error
    except Exception as error:  # patterns are compiled on the way, which may fail in many ways
        why = f"schema: {type(error).__name__}: {error}"
        raise ValueError(why[:_MAX_SHOWN_CHARS]) from error
    _check_keywords(schema)
    bounded = jsonschema.validators.extend(base, {"pattern": _pattern, "uniqueItems": _unique})
    empty: Registry[Any] = Registry()
    return bounded(schema, registry=empty)


def _draft(schema: Mapping[str, Any]) -> Any:
    """The validator class of the draft that `$schema` names; the latest if it names none."""
    import jsonschema

    named = schema.get("$schema")
    if named is None:
        return jsonschema.Draft202012Validator
    found = (
        jsonschema.validators.validator_for(schema, default=None)
        if isinstance(named, str)
        else None
    )
    if found is None:
        raise ValueError(f"schema: $schema is {named!r:.80}, a draft that is not known")
    return found


def _check_keywords(schema: Any) -> None:
    """Refuses what would fetch or could hang, wherever it stands, and compiles the patterns."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for name in _REFERENCES:
                target = value.get(name)
                if isinstance(target, str) and not target.startswith("#"):
                    raise ValueError(f"schema: {name} is {target!r}; only '#…' is followed")
            if isinstance(value.get(_UNSUPPORTED), dict):
                raise ValueError(f"schema: {_UNSUPPORTED} is not supported; use propertyNames")
            if isinstance(value.get("pattern"), str):
                _compiled(value["pattern"])
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> SafePattern:
    return SafePattern(pattern)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """The keyword `pattern`, in place of one on `re`."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "string") and not _compiled(pattern).search(instance):
        yield ValidationError(f"it does not match {pattern!r}")


def _unique(validator: Any, unique: bool, instance: Any, schema: Any) -> Iterator[Any]:
    """The keyword `uniqueItems`, in place of one that compares every pair."""
    from jsonschema import ValidationError

    if unique and validator.is_type(instance, "array"):
        keys = [_key(item) for item in instance]
        if len(set(keys)) < len(keys):
            yield ValidationError("it has equal items")


def _key(value: Any) -> object:
    """Equal for JSON values that are equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, Mapping):
        return frozenset((name, _key(item)) for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_key(item) for item in value)
    return (isinstance(value, bool), value)
