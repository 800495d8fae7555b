"""Which assert-style tests are turned into function tests, and what they then say."""

from __future__ import annotations

import pytest

from rewardsvc.verifiers.code.asserts import AssertTests, free_names, reduce_asserts
from rewardsvc.verifiers.code.cases import call_cases
from rewardsvc.verifiers.code.verdict import JudgingError
from rewardsvc.verifiers.types import ErrorKind


def test_literal_asserts_become_function_tests() -> None:
    suites = reduce_asserts(
        "assert add(1, -2) == -1\nassert add((1, [2]), b={'x': {3}}) == None, 'why'\n"
        "assert sub(1) is True"
    )
    assert suites is not None
    assert [suite.function for suite in suites] == ["add", "sub"]
    first, second = call_cases(suites[0].cases)
    assert (first.args, first.expected) == ((1, -2), -1)
    assert (second.args, second.kwargs, second.expected) == (((1, [2]),), {"b": {"x": {3}}}, None)


@pytest.mark.parametrize(
    "code",
    [
        "assert f(1)",
        "assert not f(1)",
        "assert f(1) != 2",
        "assert f(1) < 2",
        "assert 1 == f(1)",
        "assert f(x) == 1",
        "assert f(1) == g(1)",
        "assert f(*[1]) == 1",
        "assert f(**{}) == 1",
        "assert f(1) == 1 == 1",
        "assert f(1) is 2",
        "assert a.f(1) == 1",
        "assert len([1]) == 1",
        "assert sorted(f(1)) == [1]",
        "import math\nassert f(1) == 1",
        "for i in range(3):\n    assert f(i) == i",
    ],
)
def test_anything_else_stays_opaque(code: str) -> None:
    assert reduce_asserts(code) is None
    assert len(AssertTests(code)) == 1


@pytest.mark.parametrize("code", ["assert f(", "assert f(1) ==", "(" * 500, "x\0"])
def test_tests_that_are_no_python_are_a_bad_reference(code: str) -> None:
    with pytest.raises(JudgingError) as caught:
        reduce_asserts(code)
    assert caught.value.kind is ErrorKind.BAD_REFERENCE


def test_free_names_are_the_candidates() -> None:
    code = (
        "import math as m\nfrom os import path\ndef helper(a):\n    return solve(a) + m.pi\n"
        "for i in range(3):\n    assert helper(i) == Other().value, path\n"
        "try:\n    solve(1)\nexcept ValueError as e:\n    print(e)\n"
        "assert [y for y in (1,)] and (lambda z: z)(1)"
    )
    assert free_names(code) == ["Other", "solve"]


def test_entry_point_must_be_a_name() -> None:
    with pytest.raises(ValueError, match="entry_point"):
        AssertTests("", entry_point="f); import os; (")
