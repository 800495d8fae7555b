"""Test suites as APPS, TACO, LiveCodeBench, MBPP and HumanEval write them, judged."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewardsvc.verifiers import ErrorKind, Status, make_verifier
from rewardsvc.verifiers.code import CodeVerifier, FunctionTests, parse_tests
from rewardsvc.verifiers.sandbox import Sandbox

DOCUMENT = Path(__file__).parents[4] / "docs" / "verifiers.md"
ADD = "def add(a, b): return a + b"
METHOD = "class Solution:\n    def add(self, a, b): return a + b"
PRINTS = "print(sum(map(int, input().split())))"
LINES = "print(int(input()) + int(input()))"


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    with Sandbox(num_slots=2) as sandbox:
        yield CodeVerifier(time_limit_ms=2000, sandbox=sandbox)


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


LCB_CALL = {"input": "1\n2", "output": "3", "testtype": "functional"}
SUITES: dict[str, tuple[Any, str]] = {
    "apps programs": ({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}, PRINTS),
    "apps lines": ({"inputs": [["1", "2"]], "outputs": [["3"]]}, LINES),
    "apps function": ({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}, ADD),
    "apps wrapped outputs": ({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}, ADD),
    "apps method": ({"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}, METHOD),
    "taco function of texts": ({"fn_name": "add", "inputs": ["1\n2"], "outputs": [3]}, ADD),
    "livecodebench programs": (
        [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}],
        PRINTS,
    ),
    "livecodebench function": ([{**LCB_CALL, "metadata": {"func_name": "add"}}], METHOD),
    "livecodebench metadata as text": (
        [{**LCB_CALL, "metadata": '{"func_name": "add"}'}],
        METHOD,
    ),
    "mbpp": (["assert add(1, 2) == 3", "assert add(0, 0) == 0"], ADD),
    "mbpp row": ({"test_list": ["assert add(1, 2) == 3"], "test_setup_code": ""}, ADD),
    "mbpp sanitized row": (
        {"test_imports": ["import math"], "test_list": ["assert add(1, 2) == math.floor(3.5)"]},
        ADD,
    ),
    "humaneval": (
        {"test": "def check(candidate):\n    assert candidate(1, 2) == 3\n", "entry_point": "add"},
        ADD,
    ),
}


@pytest.mark.parametrize("name", list(SUITES))
def test_suites_of_data_sets_accept_the_right_program_alone(
    verifier: CodeVerifier, name: str
) -> None:
    suite, right = SUITES[name]
    wrong = right.replace("+", "-") if "+" in right else right.replace("sum", "max")
    for tests in (suite, json.dumps(suite)):
        verdict = verifier.verify(fenced(right), tests)
        assert verdict.reward == 1.0, verdict.explanation
        assert verifier.verify(fenced(wrong), tests).reward == 0.0


def test_a_list_of_one_is_itself_where_other_expected_values_are_longer() -> None:
    suite = parse_tests('{"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [1, 2]]}')
    assert isinstance(suite, FunctionTests)
    assert [case.expected for case in suite.cases] == [[1], [1, 2]]  # type: ignore[union-attr]


def test_a_function_at_the_top_level_comes_before_a_method(verifier: CodeVerifier) -> None:
    suite = {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}
    both = "class Solution:\n    def add(self, a, b): return 0\n" + ADD
    assert verifier.verify(fenced(both), suite).reward == 1.0


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ('[{"input": "1", "output": "2", "testtype": "functional"}]', "metadata.func_name is None"),
        ('[{"input": "1", "output": "2", "testtype": "other"}]', "testtype is"),
        (
            '[{"input": "1", "output": "{", "testtype": "functional", "metadata": '
            '{"func_name": "f"}}]',
            "output is '{', which is no JSON",
        ),
        ({"fn_name": "f", "inputs": [3], "outputs": [3]}, "inputs has 3"),
        ({"fn_name": "f", "inputs": [[3]], "outputs": []}, "1 entries and outputs 0"),
        ({"test_list": [3]}, "test_list is"),
        ({"test": 3, "entry_point": "f"}, "not strings"),
        ('"[]"', "text once more"),
        ("nonsense", "no JSON"),
        ([3], "is a list"),
    ],
)
def test_malformed_tests_are_an_error_and_no_reward(
    verifier: CodeVerifier, tests: Any, message: str
) -> None:
    verdict = verifier.verify(fenced(ADD), tests)
    assert verdict.reward is None
    assert verdict.error is ErrorKind.BAD_REFERENCE
    assert message in verdict.explanation


def test_every_form_in_the_documentation_is_read() -> None:
    section = DOCUMENT.read_text("utf-8").partition("## Programs")[2].partition("\n## ")[0]
    block = section.partition("```json\n")[2].partition("```")[0].splitlines()
    inline = re.findall(r"`([\[{]\".*?|\[\{.*?)`", section)
    documents = [*block, *(text for text in inline if "…}" not in text)]
    assert len(documents) >= 9
    for document in documents:
        assert len(parse_tests(document)) >= 1 or "interactor" in document


def test_the_code_verifier_is_found_by_name_and_travels() -> None:
    made = make_verifier("code", {"language": "python", "time_limit_ms": 1500, "memory_mib": 128})
    assert isinstance(made, CodeVerifier)
    copy = pickle.loads(pickle.dumps(made))
    assert copy.limits == made.limits
    assert copy.language == "python"
    with pytest.raises(ValueError, match="options: code does not take"):
        make_verifier("code", {"speed": 3})


def test_each_test_has_its_time(verifier: CodeVerifier) -> None:
    slow = "import time\ndef f(n):\n    time.sleep(n / 100)\n    return n"
    verdict = verifier.verify(
        fenced(slow), {"fn_name": "f", "inputs": [[0], [20]], "outputs": [0, 20]}
    )
    assert verdict.status is Status.ACCEPTED
    first, second = verdict.tests
    assert 0.0 <= first.cpu_ms < second.cpu_ms
