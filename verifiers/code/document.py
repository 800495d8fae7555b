"""Test suites as JSON documents, for data sets and for the service.

    {"type": "stdio", "tests": [{"stdin": "1 2\\n", "stdout": "3\\n", "weight": 1}],
     "compare": {"whitespace": "trailing", "abs_tol": 1e-6}, "checker": "def check(...): ..."}
    {"type": "function", "function": "add", "tests": [{"args": [1, 2], "expected": 3}],
     "compare": {"numbers": "strict", "sequences": "any"}}
    {"type": "assert", "code": "assert add(1, 2) == 3", "entry_point": "add"}
    {"type": "interactive", "interactor": "...", "tests": [{"stdin": "7"}]}

The forms that data sets have are read as well; see `dataset_forms`. JSON has no tuples, so
sequences are compared by their items here unless `compare` says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rewardsvc.verifiers.code.asserts import AssertTests
from rewardsvc.verifiers.code.cases import CallCase, StdioCase
from rewardsvc.verifiers.code.checker import Checker
from rewardsvc.verifiers.code.compare import Sequences, ValueComparison
from rewardsvc.verifiers.code.dataset_forms import parse_dataset_form
from rewardsvc.verifiers.code.function import FunctionTests
from rewardsvc.verifiers.code.interactive import InteractiveTests
from rewardsvc.verifiers.code.stdio import StdioTests
from rewardsvc.verifiers.code.suite import Tests
from rewardsvc.verifiers.code.text import TextComparison


def parse_tests(document: str) -> Tests:
    """The suite that a document describes.

    Raises:
        ValueError: If it describes none; names the field and the value.
    """
    try:
        found = json.loads(document)
        if isinstance(found, str):
            raise ValueError("it is text once more")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tests_json is no JSON: {error}") from error
    return suite_of(found)


def suite_of(found: object) -> Tests:
    """The suite that a document describes, once decoded: objects, lists and text.

    Raises:
        ValueError: If it describes none; names the field and the value.
    """
    if isinstance(found, str):
        return parse_tests(found)
    known = parse_dataset_form(found)
    if known is not None:
        return known
    if not isinstance(found, dict):
        raise ValueError(
            f"tests_json is a {type(found).__name__}: "
            "write an object, or a list of assert statements"
        )
    reader = _READERS.get(_text(found, "type", default=""))
    if reader is None:
        raise ValueError(f"type is {found.get('type')!r}, known: {', '.join(_READERS)}")
    return reader(found)


def _stdio(found: Mapping[str, Any]) -> Tests:
    _only(found, {"type", "tests", "compare", "checker"}, "tests_json")
    compare = _object(found, "compare")
    _only(compare, {"whitespace", "abs_tol", "rel_tol"}, "compare")
    checker = Checker(_text(found, "checker")) if "checker" in found else None
    return StdioTests(_stdio_cases(found), comparison=TextComparison(**compare), checker=checker)


def _interactive(found: Mapping[str, Any]) -> Tests:
    _only(found, {"type", "tests", "interactor"}, "tests_json")
    return InteractiveTests(_text(found, "interactor"), _stdio_cases(found))


def _function(found: Mapping[str, Any]) -> Tests:
    _only(found, {"type", "function", "tests", "compare"}, "tests_json")
    compare = _object(found, "compare")
    _only(compare, {"numbers", "sequences", "abs_tol", "rel_tol"}, "compare")
    cases = []
    for index, test in enumerate(_list(found, "tests")):
        where = f"tests[{index}]"
        _only(test, {"args", "kwargs", "expected", "weight"}, where)
        if "expected" not in test:
            raise ValueError(f"{where}.expected is missing")
        cases.append(
            CallCase(
                tuple(_list(test, "args")),
                test["expected"],
                kwargs=_object(test, "kwargs"),
                weight=_weight(test, where),
            )
        )
    comparison = ValueComparison(**{"sequences": Sequences.ANY, **compare})
    return FunctionTests(_text(found, "function"), cases, comparison=comparison)


def _assert(found: Mapping[str, Any]) -> Tests:
    _only(found, {"type", "code", "entry_point"}, "tests_json")
    entry_point = _text(found, "entry_point") if "entry_point" in found else None
    return AssertTests(_text(found, "code"), entry_point=entry_point)


_READERS: dict[str, Callable[[Mapping[str, Any]], Tests]] = {
    "stdio": _stdio,
    "function": _function,
    "assert": _assert,
    "interactive": _interactive,
}


def _stdio_cases(found: Mapping[str, Any]) -> list[StdioCase]:
    cases = []
    for index, test in enumerate(_list(found, "tests")):
        where = f"tests[{index}]"
        _only(test, {"stdin", "stdout", "weight"}, where)
        cases.append(
            StdioCase(
                _text(test, "stdin", default=""),
                _text(test, "stdout", default=""),
                weight=_weight(test, where),
            )
        )
    return cases


def _only(found: object, known: Collection[str], where: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is a {type(found).__name__}, must be an object")
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}, known: {sorted(known)}")


def _text(found: Mapping[str, Any], name: str, *, default: str | None = None) -> str:
    value = found.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, must be a string")
    return value


def _list(found: Mapping[str, Any], name: str) -> list[Any]:
    value = found.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}, must be a list")
    return value


def _object(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = found.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}, must be an object")
    return value


def _weight(found: Mapping[str, Any], where: str) -> float:
    value = found.get("weight", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}.weight is {value!r}, must be a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{where}.weight is too large") from error
