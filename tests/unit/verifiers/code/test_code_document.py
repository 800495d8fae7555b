"""Test suites from JSON documents."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.verifiers.code import (
    AssertTests,
    FunctionTests,
    InteractiveTests,
    Sequences,
    StdioTests,
    Whitespace,
    parse_tests,
)

HUGE = "1" + "0" * 400
"""More than a float holds."""


def test_stdio_document() -> None:
    suite = parse_tests(
        json.dumps(
            {
                "type": "stdio",
                "tests": [{"stdin": "1\n", "stdout": "2\n", "weight": 3}, {"stdout": "x"}],
                "compare": {"whitespace": "tokens", "abs_tol": 0.1},
                "checker": "def check(i, o, e): return True",
            }
        )
    )
    assert isinstance(suite, StdioTests)
    assert len(suite) == 2
    assert suite.comparison.whitespace is Whitespace.TOKENS
    assert suite.checker is not None


def test_function_document_compares_sequences_by_their_items() -> None:
    suite = parse_tests(
        '{"type":"function","function":"f","tests":[{"args":[1],"kwargs":{"k":2},"expected":[1]}]}'
    )
    assert isinstance(suite, FunctionTests)
    assert suite.comparison.sequences is Sequences.ANY


def test_other_documents() -> None:
    assert isinstance(parse_tests('{"type": "assert", "code": "assert f(1) == 2"}'), AssertTests)
    assert isinstance(parse_tests('["assert f(1) == 2", "assert f(2) == 3"]'), AssertTests)
    assert len(parse_tests('["assert f(1) == 2", "assert f(2) == 3"]')) == 2
    assert isinstance(parse_tests('{"inputs": ["1"], "outputs": ["2"]}'), StdioTests)
    interactive = '{"type": "interactive", "interactor": "pass", "tests": [{"stdin": "1"}]}'
    assert isinstance(parse_tests(interactive), InteractiveTests)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("3", "is a int"),
        ("[1]", "is a list"),
        ("{}", "type is None, known: stdio"),
        ('{"type": 3}', "type is 3, must be a string"),
        ('{"type": "unit"}', "type is 'unit'"),
        ('{"type": "stdio", "cases": []}', r"unknown keys \['cases'\]"),
        ('{"type": "stdio", "tests": 3}', "tests is 3, must be a list"),
        ('{"type": "stdio", "tests": [3]}', r"tests\[0\] is a int"),
        ('{"type": "stdio", "tests": [{"stdin": 3}]}', "stdin is 3"),
        ('{"type": "stdio", "tests": [{"in": ""}]}', r"tests\[0\] has unknown keys"),
        ('{"type": "stdio", "tests": [{"weight": true}]}', r"tests\[0\].weight is True"),
        ('{"type": "stdio", "tests": [{"weight": 0}]}', "weight is 0.0"),
        ('{"type": "stdio", "compare": {"whitespace": "some"}}', "'some'"),
        ('{"type": "stdio", "compare": {"rel_tol": -1}}', "rel_tol is -1"),
        ('{"type": "stdio", "compare": {"rel_tol": "x"}}', "rel_tol"),
        ('{"type": "function", "tests": []}', "function is None"),
        ('{"type": "function", "function": "f(", "tests": []}', "function is 'f\\('"),
        ('{"type": "function", "function": "f", "tests": [{"args": []}]}', "expected is missing"),
        ('{"type": "function", "function": "f", "tests": [{"args": 1, "expected": 1}]}', "args"),
        (f'{{"type": "stdio", "tests": [{{"weight": {HUGE}}}]}}', "weight is too large"),
        (f'{{"type": "stdio", "compare": {{"abs_tol": {HUGE}}}}}', "abs_tol is 1000"),
        ('[{"input": "", "output": "", "testtype": ["stdin"]}]', "testtype is"),
        ('[{"input": "", "output": "", "testtype": {}}]', "testtype is"),
        ('{"inputs": ["1"], "outputs": []}', "1 entries and outputs 0"),
        ('{"inputs": [1], "outputs": [1]}', "input or output 1, must be text"),
        ('{"inputs": [], "outputs": [], "fn_name": 3}', "fn_name is 3"),
    ],
)
def test_error_names_the_field_and_the_value(document: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tests(document)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["type", "tests", "compare", "inputs", "outputs", "code"]), x
            )
        ),
        max_leaves=6,
    )
)
def test_any_json_is_a_suite_or_a_value_error(document: object) -> None:
    with contextlib.suppress(ValueError):
        parse_tests(json.dumps(document))
