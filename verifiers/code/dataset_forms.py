"""Test suites as the field's data sets write them: APPS, TACO, LiveCodeBench, MBPP, HumanEval.

    {"inputs": ["1 2\\n"], "outputs": ["3\\n"]}                              APPS, TACO: programs
    {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}                  APPS, TACO: functions
    [{"input": "1 2\\n", "output": "3\\n", "testtype": "stdin"}]             LiveCodeBench: programs
    [{"input": "1\\n2", "output": "3", "testtype": "functional",
      "metadata": {"func_name": "add"}}]                                    LiveCodeBench: functions
    ["assert add(1, 2) == 3"]  or  {"test_list": […]}                       MBPP
    {"test": "def check(candidate): …", "entry_point": "add"}               HumanEval

Functions may also be methods of a class `Solution`, and sequences are compared by their items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewardsvc.verifiers.code.asserts import AssertTests
from rewardsvc.verifiers.code.cases import CallCase, StdioCase
from rewardsvc.verifiers.code.compare import Sequences, ValueComparison
from rewardsvc.verifiers.code.function import FunctionTests
from rewardsvc.verifiers.code.stdio import StdioTests
from rewardsvc.verifiers.code.suite import Tests

_CLASS = "Solution"


def parse_dataset_form(found: object) -> Tests | None:
    """The suite that a decoded JSON document describes in one of these forms; None for any other.

    Raises:
        ValueError: If it is of one of these forms but malformed; names the field and the value.
    """
    if isinstance(found, Mapping):
        return _parse_object(found)
    if not isinstance(found, Sequence) or isinstance(found, str | bytes) or not found:
        return None
    if all(isinstance(line, str) for line in found):
        return AssertTests("\n".join(found))
    if all(isinstance(test, Mapping) and {"input", "output"} <= test.keys() for test in found):
        return _parse_livecodebench(found)
    return None


def _parse_object(found: Mapping[str, Any]) -> Tests | None:
    if "type" in found:
        return None
    if {"inputs", "outputs"} <= found.keys():
        inputs, outputs = _list(found, "inputs"), _list(found, "outputs")
        if len(inputs) != len(outputs):
            raise ValueError(f"inputs has {len(inputs)} entries and outputs {len(outputs)}")
        if found.get("fn_name"):
            return _calls(found["fn_name"], inputs, _unwrapped(outputs))
        texts = zip(map(_joined, inputs), map(_joined, outputs), strict=True)
        return StdioTests([StdioCase(*pair) for pair in texts])
    if "test_list" in found:
        lines = [*_setup(found), *_list(found, "test_list")]
        if not all(isinstance(line, str) for line in lines):
            raise ValueError(f"test_list is {found['test_list']!r}, must be a list of statements")
        return AssertTests("\n".join(lines))
    if {"test", "entry_point"} <= found.keys():
        test, entry_point = found["test"], found["entry_point"]
        if not isinstance(test, str) or not isinstance(entry_point, str):
            raise ValueError(f"test and entry_point are {test!r} and {entry_point!r}, not strings")
        return AssertTests(test, entry_point=entry_point)
    return None


def _setup(found: Mapping[str, Any]) -> list[Any]:
    imports = found.get("test_imports") or []
    setup = found.get("test_setup_code")
    return [*(imports if isinstance(imports, list) else [imports]), *([setup] if setup else [])]


def _parse_livecodebench(found: Sequence[Mapping[str, Any]]) -> Tests:
    kinds = {str(test.get("testtype", "stdin")) for test in found}
    if kinds == {"stdin"}:
        return StdioTests([StdioCase(_joined(t["input"]), _joined(t["output"])) for t in found])
    if kinds != {"functional"}:
        raise ValueError(f"testtype is {sorted(kinds)}; one of stdin and functional")
    names = {_function_name(test) for test in found}
    if len(names) != 1:
        raise ValueError(f"func_name is {sorted(names)}; the tests of a suite have the same")
    outputs = [_json(test["output"], "output") for test in found]
    return _calls(names.pop(), [test["input"] for test in found], outputs)


def _function_name(test: Mapping[str, Any]) -> str:
    metadata = test.get("metadata", {})
    if isinstance(metadata, str):
        metadata = _json(metadata, "metadata")
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f"metadata.func_name is {name!r}; a functional test names its function")
    return name


def _calls(name: object, inputs: Sequence[Any], outputs: Sequence[Any]) -> FunctionTests:
    if not isinstance(name, str):
        raise ValueError(f"fn_name is {name!r}, must be a string")
    cases = [
        CallCase(_arguments(given), expected)
        for given, expected in zip(inputs, outputs, strict=True)
    ]
    comparison = ValueComparison(sequences=Sequences.ANY)
    return FunctionTests(name, cases, comparison=comparison, or_method_of=_CLASS)


def _arguments(given: object) -> list[Any]:
    """A list of arguments, or a text with one JSON value a line."""
    if isinstance(given, str):
        return [_json(line, "input") for line in given.splitlines() if line.strip()]
    if not isinstance(given, list):
        raise ValueError(f"inputs has {given!r}; each is the list of a call's arguments")
    return given


def _unwrapped(outputs: list[Any]) -> list[Any]:
    """APPS puts every expected value into a list of its own; the lists of a suite that does."""
    if outputs and all(isinstance(output, list) and len(output) == 1 for output in outputs):
        return [output[0] for output in outputs]
    return outputs


def _joined(text: object) -> str:
    """A text, or the lines of one."""
    if isinstance(text, list) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    if not isinstance(text, str):
        raise ValueError(f"a test has the input or output {text!r}, must be text")
    return text


def _json(text: object, name: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is {text!r:.80}, which is no JSON: {error}") from error


def _list(found: Mapping[str, Any], name: str) -> list[Any]:
    value = found[name]
    if not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}, must be a list")
    return value
