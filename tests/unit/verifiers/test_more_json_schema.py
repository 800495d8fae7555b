"""Documents against schemas, both of which may be hostile."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from rewardsvc.verifiers import ErrorKind, JsonSchema, Status
from rewardsvc.verifiers.json_document import MAX_DOCUMENT_CHARS, MAX_DOCUMENT_DEPTH

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ('{"name": "Ada", "age": 36}', Status.ACCEPTED),
        ('<think>{"no": 1}</think>\n```json\n{"name": "Ada"}\n```', Status.ACCEPTED),
        ('{"age": 36}', Status.WRONG_ANSWER),
        ('{"name": "ada"}', Status.WRONG_ANSWER),
        ('{"name": "Ada", "age": "36"}', Status.WRONG_ANSWER),
        ('{"name": "Ada", "more": 1}', Status.WRONG_ANSWER),
        ("[]", Status.WRONG_ANSWER),
        ('Here it is: {"name": "Ada"}', Status.NO_ANSWER),
        ('{"name": "Ada"} {"name": "Bob"}', Status.NO_ANSWER),
        ('{"name": "Ada", "age": NaN}', Status.NO_ANSWER),
        ('{"name": "Ada", "age": 1e999}', Status.NO_ANSWER),
        ('{"name": "Ada", "age": ' + "9" * 5000 + "}", Status.NO_ANSWER),
        ('<think>{"name": "Ada"}', Status.NO_ANSWER),
        ("", Status.NO_ANSWER),
        ("[" * 100_000, Status.NO_ANSWER),
        ("[" * 200 + "]" * 200, Status.NO_ANSWER),
        ('"' + "a" * MAX_DOCUMENT_CHARS + '"', Status.NO_ANSWER),
    ],
)
def test_a_document_is_allowed_or_not(completion: str, status: Status) -> None:
    assert JsonSchema(schema=PERSON).verify(completion).status is status


def test_the_explanation_says_where() -> None:
    told = JsonSchema(schema=PERSON).verify('{"name": "Ada", "age": "x"}').explanation
    assert told == "$.age: 'x' is not of type 'integer'"


@pytest.mark.parametrize("as_text", [True, False])
def test_a_sample_may_bring_its_schema(as_text: bool) -> None:
    schema: Any = json.dumps(PERSON) if as_text else PERSON
    assert JsonSchema().verify('{"name": "Ada"}', schema).reward == 1.0
    assert JsonSchema().verify('{"name": 1}', schema).reward == 0.0


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "nothing"}, "nothing"),
        ({"$ref": "https://example.org/schema.json"}, "only '#…'"),
        ({"$defs": {"a": {"items": {"$ref": "file:///etc/passwd"}}}}, "only '#…'"),
        ({"patternProperties": {"(a|aa)+$": {}}}, "patternProperties"),
        ({"properties": {"a": {"pattern": "("}}}, "regex"),
        ({"$schema": "https://example.org/draft"}, "not known"),
        ({"$schema": 3}, "not known"),
        ([1], "object"),
        ({"pattern": "a{99999999999}"}, "too large"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        JsonSchema(schema=schema)
    verdict = JsonSchema().verify("{}", json.dumps(schema))
    assert verdict.error is ErrorKind.BAD_REFERENCE
    assert named in verdict.explanation


def test_without_any_schema_there_is_no_reward() -> None:
    assert JsonSchema().verify("{}").error is ErrorKind.BAD_REFERENCE
    assert JsonSchema().verify("{}", "{").error is ErrorKind.BAD_REFERENCE


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/none"},
        {"allOf": [{"$ref": "#"}]},
        {"$ref": "#/allOf/x", "allOf": [{}]},  # a list has no x
        {"$ref": "#/title", "title": "a text, and no schema"},
        {"$ref": "#/minimum/x", "minimum": 1},
        {"$schema": "http://json-schema.org/draft-03/schema#", "type": "nothing"},
        {"$schema": "http://json-schema.org/draft-04/schema#", "$ref": 5},
    ],
)
def test_a_reference_that_leads_nowhere_is_no_reward(schema: dict[str, Any]) -> None:
    assert JsonSchema(schema=schema).verify("{}").error is ErrorKind.BAD_REFERENCE


def test_a_pattern_of_the_schema_is_stopped() -> None:
    schema = {"type": "string", "pattern": "^(a|aa)+$"}
    verdict = JsonSchema(schema=schema).verify(json.dumps("a" * 60 + "b"))
    assert verdict.error is ErrorKind.VERIFIER_TIMEOUT


@pytest.mark.parametrize("number", ["9" * 300, "-" + "9" * 299, "1e308", "1e-320", "-0.0"])
@pytest.mark.parametrize("keyword", ["multipleOf", "maximum", "exclusiveMinimum"])
@pytest.mark.parametrize("bound", [3, 0.1, 1e-300, 1e300])
def test_no_number_is_too_large_to_compare(number: str, keyword: str, bound: float) -> None:
    verdict = JsonSchema(schema={keyword: bound}).verify(number)
    assert verdict.status in (Status.ACCEPTED, Status.WRONG_ANSWER)


def test_an_older_draft_is_read_as_such() -> None:
    draft = "http://json-schema.org/draft-04/schema#"
    schema = {"$schema": draft, "minimum": 1, "exclusiveMinimum": True}
    assert JsonSchema(schema=schema).verify("1").reward == 0.0


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, 2, "1", True, None, [1], {"a": 1}], True),
        ([1, 1.0], False),
        ([0, False], True),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], False),
        ([[1, [2]], [1, [2]]], False),
        ([[1], [True]], True),
    ],
)
def test_unique_items_compares_as_the_standard_does(items: list[Any], unique: bool) -> None:
    verdict = JsonSchema(schema={"uniqueItems": True}).verify(json.dumps(items))
    assert verdict.reward == float(unique)


def test_many_items_that_cannot_be_sorted_take_no_quadratic_time() -> None:
    items = [{"a": i} for i in range(15_000)]
    assert JsonSchema(schema={"uniqueItems": True}).verify(json.dumps(items)).reward == 1.0


def test_a_recursive_schema_holds_to_the_deepest_document() -> None:
    tree = {"type": "array", "items": {"$ref": "#"}}
    depth = MAX_DOCUMENT_DEPTH - 1
    assert JsonSchema(schema=tree).verify("[" * depth + "]" * depth).reward == 1.0


def test_a_copy_in_another_process_judges_the_same() -> None:
    assert pickle.loads(pickle.dumps(JsonSchema(schema=PERSON))).verify("{}").reward == 0.0
