"""When two values in their tagged form are the same."""

from __future__ import annotations

import collections
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.verifiers.code import Numbers, Sequences, ValueComparison
from rewardsvc.verifiers.sandbox.values import encode

STRICT = ValueComparison()
VALUE = ValueComparison(numbers=Numbers.VALUE)


@pytest.mark.parametrize(
    ("a", "b", "strict", "by_value"),
    [
        (1, 1, True, True),
        (1, 1.0, False, True),
        (1.0, 1, False, True),
        (1, True, False, False),
        (True, 1, False, False),
        (0, False, False, False),
        (0.0, -0.0, False, True),
        (math.nan, math.nan, True, True),
        (math.nan, 1.0, False, False),
        (math.inf, math.inf, True, True),
        (math.inf, -math.inf, False, False),
        (1 << 70, 1 << 70, True, True),
        (1 << 70, float(1 << 70), False, True),
        ((1 << 70) + 1, float(1 << 70), False, False),
        (math.factorial(200), math.factorial(200), True, True),  # larger than any float
        (-(10**400), -(10**400), True, True),
        (10**400, 10**400 + 1, False, False),
        (10**400, math.inf, False, False),
        (math.inf, 10**400, False, False),
        ({10**400: [10**400]}, {10**400: [10**400]}, True, True),
        (0.1 + 0.2, 0.3, False, False),
        ("a", "a", True, True),
        ("1", 1, False, False),
        (None, None, True, True),
        (None, False, False, False),
        ([1, 2], [1, 2], True, True),
        ([1, 2], (1, 2), False, False),
        ([1, 2], [2, 1], False, False),
        ([1, 2], [1], False, False),
        ([], None, False, False),
        ({1, 2}, {2, 1}, True, True),
        ({1, 2}, frozenset({1, 2}), False, False),
        ({1}, {1.0}, False, True),
        ({1}, {True}, False, False),
        ({(1, "a")}, {(1, "a")}, True, True),
        ({1: 2}, {1: 2}, True, True),
        ({1: 2}, {1: 2.0}, False, True),
        ({1: 2}, {1: 3}, False, False),
        ({1: 2}, {2: 2}, False, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True, True),
        ({1: 1}, collections.Counter([1]), True, True),
        (b"a", b"a", True, True),
        (b"a", bytearray(b"a"), False, False),
        (1 + 2j, 1 + 2j, True, True),
        (range(3), range(3), True, True),
        (range(3), [0, 1, 2], False, False),
        (Decimal("1.0"), Decimal("1.00"), False, False),
        (collections.deque([1]), [1], False, False),
        (object(), object(), False, False),
    ],
)
def test_sameness(a: object, b: object, strict: bool, by_value: bool) -> None:
    assert STRICT.same(encode(a), encode(b)) is strict
    assert VALUE.same(encode(a), encode(b)) is by_value


def test_sequences_of_any_type_when_asked_for() -> None:
    anything = ValueComparison(sequences=Sequences.ANY)
    for other in ([1, [2]], (1, (2,)), collections.deque([1, [2]])):
        assert anything.same(encode([1, [2]]), encode(other))
    assert not anything.same(encode([1]), encode({1}))


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        (0.5, 0.5000001, True),
        (0.5, 0.6, False),
        (1000000007, 1000000006, False),
        (2.0, math.nan, False),
        (2.0, math.inf, False),
        (math.inf, math.inf, True),
        (math.inf, 1e308, False),
        ([0.5, [1.5]], [0.5000001, [1.5]], True),
        ({"a": 0.5}, {"a": 0.5000001}, True),
        (2.0, 2, False),
    ],
)
def test_tolerance_is_for_floats(expected: object, actual: object, same: bool) -> None:
    tolerant = ValueComparison(rel_tol=1e-5)
    assert tolerant.same(encode(expected), encode(actual)) is same


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, -0.0, 1.0, 2.5])
    | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(0, 3) | st.text("ab", max_size=1), inner, max_size=3)
    ),
    max_leaves=6,
)


def same_by_loop(a: Any, b: Any) -> bool:
    """Strict sameness, as a plain loop over Python values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_by_loop(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        if len(a) != len(b):
            return False
        return all(
            any(type(k) is type(j) and k == j and same_by_loop(v, w) for j, w in b.items())
            for k, v in a.items()
        )
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b)


@settings(max_examples=200, deadline=None)
@given(plain, plain)
def test_strict_sameness_agrees_with_a_plain_loop(a: Any, b: Any) -> None:
    assert STRICT.same(encode(a), encode(b)) is same_by_loop(a, b)
    assert STRICT.same(encode(a), encode(a))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["i", "f", "t", "s", "d", "x", "D", "q"]), inner, max_size=2
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(plain, json_values)
def test_any_json_is_an_answer_without_an_exception(expected: Any, forged: Any) -> None:
    for comparison in (STRICT, VALUE, ValueComparison(abs_tol=1.0)):
        comparison.same(encode(expected), forged)


def test_forged_duplicates_in_sets_and_keys_are_not_the_same() -> None:
    assert not STRICT.same(encode({1, 2}), {"s": [1, 1]})
    assert not STRICT.same(encode({1: 1, 2: 2}), {"d": [[1, 1], [1, 1]]})


def test_colliding_hashes_cost_nothing() -> None:
    """Integers with the same hash would make a dictionary of them quadratic; texts do not."""
    prime = (1 << 61) - 1
    forged = {"d": [[{"i": hex(i * prime)}, 0] for i in range(1, 50_001)]}
    expected = encode(dict.fromkeys(range(50_000), 0))
    assert not STRICT.same(expected, forged)
