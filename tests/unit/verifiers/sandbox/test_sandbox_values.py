"""The tagged form of values."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.verifiers.sandbox.values import (
    UnencodableError,
    decode,
    encode,
    encode_strictly,
    find_opaque,
)

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=8,
)
values = st.recursive(
    hashable | st.complex_numbers() | st.decimals(allow_nan=False) | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=16,
)


def identical(a: Any, b: Any) -> bool:
    """Equal in value and type, all the way down; NaN is identical to NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(identical(x, y) for y in b) for x in a)
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        keys = [(k, next((j for j in b if identical(k, j)), None)) for k in a]
        return len(a) == len(b) and all(identical(a[k], b[j]) for k, j in keys)
    return repr(a) == repr(b)


@settings(max_examples=150, deadline=None)
@given(values)
def test_plain_values_survive_json(value: Any) -> None:
    assert identical(decode(json.loads(json.dumps(encode(value)))), value)


@pytest.mark.parametrize(
    "value",
    [
        1 << 4000,
        -(1 << 53),
        math.nan,
        -0.0,
        -math.inf,
        range(3, 9, 2),
        bytearray(b"x"),
        collections.deque([1]),
        Decimal("1.10"),
        Fraction(1, 3),
        "\ud800",
    ],
)
def test_awkward_values_survive_json(value: object) -> None:
    assert identical(decode(json.loads(json.dumps(encode(value)))), value)


class Liar(int):
    def __eq__(self, other: object) -> bool:
        raise AssertionError("asked")

    __hash__ = int.__hash__

    def __repr__(self) -> str:
        raise AssertionError("asked")


class LyingList(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise AssertionError("asked")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Liar(3),
        lambda: LyingList([1]),
        object,
        lambda: iter([1]),
        lambda: (i for i in ()),
        lambda: print,
        lambda: int,
    ],
)
def test_anything_else_is_opaque_and_is_not_asked(make: Callable[[], object]) -> None:
    value = make()
    tree = encode({"deep": [value]})
    assert find_opaque(tree) == type(value).__name__
    with pytest.raises(ValueError, match="no plain data"):
        decode(tree)
    with pytest.raises(UnencodableError, match=r"args\[0\] contains a"):
        encode_strictly([value], "args[0]")


def test_depth_is_bounded() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert find_opaque(encode(loop)) == "value nested too deep"


@pytest.mark.parametrize(
    "tree", [1.5, {"f": "x"}, {"i": 3}, {"c": ["0x1p0"]}, {"s": [[1]]}, {"d": [1]}, {}, {"a": 1}]
)
def test_malformed_trees_are_value_errors(tree: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(tree)
