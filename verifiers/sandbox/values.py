"""Values as plain data: a tagged JSON form, built by exact type checks.

What a candidate returns is never unpickled, and never asked whether it equals something. It is
taken apart here, in the candidate's process, into JSON; a subclass of `int`, an object with its
own `__eq__`, a generator are none of the types below and become an opaque tag that equals nothing.
The comparison happens elsewhere, on the data.

|Python|JSON|
|-|-|
|None, bool, str|the same|
|int|a number; above 2**53 `{"i": hex}`|
|float|`{"f": float.hex()}`, so that NaN, infinities and -0.0 survive|
|list|array|
|tuple, set, frozenset, deque|`{"t"/"s"/"fs"/"q": [...]}`|
|dict, OrderedDict, defaultdict, Counter|`{"d": [[key, value], ...]}`|
|bytes, bytearray|`{"b"/"ba": hex}`|
|complex, range, Decimal, Fraction|`{"c"/"r"/"D"/"F": ...}`|
|anything else|`{"x": name of the type}`|
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias

Tree: TypeAlias = Any
"""A value in its tagged form."""

MAX_DEPTH = 200
_MAX_PLAIN_INT = 1 << 53


class UnencodableError(ValueError):
    """A value of a test has a type that the tagged form lacks."""


def encode(value: object, depth: int = 0) -> Tree:
    """The tagged form of `value`; total on any object, and calls none of its methods."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if depth > MAX_DEPTH:
        return {"x": "value nested too deep"}
    encoder = _ENCODERS.get(kind)
    return {"x": kind.__name__} if encoder is None else encoder(value, depth + 1)


def encode_strictly(value: object, what: str) -> Tree:
    """The tagged form of a value of a test.

    Args:
        value: An argument or an expected value.
        what: What to call it in the error.

    Raises:
        UnencodableError: If the value, or a part of it, has another type than those of the table.
    """
    tree = encode(value)
    opaque = find_opaque(tree)
    if opaque is not None:
        raise UnencodableError(f"{what} contains a {opaque}, which cannot be sent: use plain data")
    return tree


def find_opaque(tree: Tree) -> str | None:
    """The name of the first type in `tree` that has no tagged form; None if there is none."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if type(node) is list:
            pending += node
        elif type(node) is dict:
            if "x" in node:
                return str(node["x"])
            pending += node.values()
    return None


def _items(value: Any, depth: int) -> list[Tree]:
    return [encode(item, depth) for item in value]


def _pairs(value: Any, depth: int) -> Tree:
    return {"d": [[encode(k, depth), encode(v, depth)] for k, v in dict.items(value)]}


def _int(value: Any, _: int) -> Tree:
    return value if -_MAX_PLAIN_INT < value < _MAX_PLAIN_INT else {"i": hex(value)}


_ENCODERS: dict[type, Callable[[Any, int], Tree]] = {
    int: _int,
    float: lambda value, _: {"f": float.hex(value)},
    complex: lambda value, _: {"c": [float.hex(value.real), float.hex(value.imag)]},
    list: _items,
    tuple: lambda value, depth: {"t": _items(value, depth)},
    set: lambda value, depth: {"s": _items(value, depth)},
    frozenset: lambda value, depth: {"fs": _items(value, depth)},
    collections.deque: lambda value, depth: {"q": _items(value, depth)},
    dict: _pairs,
    collections.OrderedDict: _pairs,
    collections.defaultdict: _pairs,
    collections.Counter: _pairs,
    bytes: lambda value, _: {"b": value.hex()},
    bytearray: lambda value, _: {"ba": value.hex()},
    range: lambda value, depth: {"r": _items((value.start, value.stop, value.step), depth)},
    Decimal: lambda value, _: {"D": str(value)},
    Fraction: lambda value, depth: {"F": _items((value.numerator, value.denominator), depth)},
}


def decode(tree: Tree) -> Any:
    """The value that `encode` was given, from a side that is trusted or bounded in size.

    Raises:
        ValueError: If the tree has no such form; also for what `encode` calls opaque.
    """
    if type(tree) is list:
        return [decode(item) for item in tree]
    if type(tree) is not dict:
        if type(tree) is float:
            raise ValueError(f"{tree} is a bare float; floats are written as hex")
        return tree
    if len(tree) != 1:
        raise ValueError(f"a tag with {len(tree)} keys")
    ((tag, body),) = tree.items()
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise ValueError(f"a value of type {body!r} is no plain data")
    try:
        return decoder(body)
    except (TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"malformed {tag!r}: {error}") from error


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "i": lambda body: int(body, 16),
    "f": float.fromhex,
    "c": lambda body: complex(float.fromhex(body[0]), float.fromhex(body[1])),
    "t": lambda body: tuple(decode(item) for item in body),
    "s": lambda body: {decode(item) for item in body},
    "fs": lambda body: frozenset(decode(item) for item in body),
    "q": lambda body: collections.deque(decode(item) for item in body),
    "d": lambda body: {decode(key): decode(value) for key, value in body},
    "b": bytes.fromhex,
    "ba": bytearray.fromhex,
    "r": lambda body: range(*(decode(item) for item in body)),
    "D": Decimal,
    "F": lambda body: Fraction(*(decode(item) for item in body)),
}
