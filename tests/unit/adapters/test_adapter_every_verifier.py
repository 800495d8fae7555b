"""Every built-in verifier through every adapter, in this process, with no service."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from rewardsvc.policy_client.adapters.openrlhf import openrlhf_reward
from rewardsvc.policy_client.adapters.prime_intellect import rubric_function
from rewardsvc.policy_client.adapters.trl import trl_reward
from rewardsvc.policy_client.adapters.verl import verl_compute_score, verl_compute_score_batch
from rewardsvc.verifiers import make_verifier
from rewardsvc.verifiers.registry import BUILTIN

WORDS = {
    "kind": "length_constraints:number_words",
    "params": {"num_words": 3, "relation": "at least"},
}
SCHEMA = {"type": "object", "required": ["a"]}
TESTS = {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    # options, columns, right completion, wrong completion
    "code": (
        {"time_limit_ms": 2000},
        {"tests": TESTS},
        "```python\ndef add(a, b): return a + b\n```",
        "```python\ndef add(a, b): return a - b\n```",
    ),
    "countdown": ({}, {"numbers": [2, 3, 5], "target": 16}, "(3 + 5) * 2", "3 + 5 * 2"),
    "exact": ({}, {"answer": "yes"}, "yes", "no"),
    "format": ({"preset": "boxed"}, {}, r"\boxed{1}", "1"),
    "instructions": ({}, {"instructions": [WORDS]}, "one two three", "one"),
    "json_schema": ({"schema": SCHEMA}, {}, '{"a": 1}', '{"b": 1}'),
    "language": ({"language": "en"}, {}, "words", "слова"),
    "math": ({}, {"answer": r"\frac{1}{2}"}, r"\boxed{0.5}", r"\boxed{0.6}"),
    "multiple_choice": ({}, {"answer": "B"}, "The answer is B.", "The answer is C."),
    "regex": ({"pattern": "a+"}, {}, "aaa", "bbb"),
}


def test_every_verifier_has_a_case() -> None:
    assert set(CASES) == set(BUILTIN)


@pytest.mark.parametrize("name", list(CASES))
def test_verifier_as_a_reward_function_of_every_trainer(name: str) -> None:
    options, columns, right, wrong = CASES[name]
    verifier = make_verifier(name, options)

    trl = pickle.loads(pickle.dumps(trl_reward(verifier)))
    lists = {column: [value, value] for column, value in columns.items()}
    assert trl(prompts=["p", "p"], completions=[right, wrong], **lists) == [1.0, 0.0]

    answer = columns.get("answer")
    verl = pickle.loads(pickle.dumps(verl_compute_score(verifier)))
    assert verl("data", right, answer, columns) == 1.0
    assert verl("data", wrong, columns if answer is None else answer, columns) == 0.0
    batch = pickle.loads(pickle.dumps(verl_compute_score_batch(verifier)))
    assert batch(["d"] * 2, [right, wrong], [answer] * 2, [columns] * 2) == [1.0, 0.0]

    rubric = pickle.loads(pickle.dumps(rubric_function(verifier)))

    async def judge(completion: str) -> float:
        said = [{"role": "assistant", "content": completion}]
        return await rubric(completion=said, prompt="p", answer=answer or "", info=columns)

    assert asyncio.run(judge(right)) == 1.0
    assert asyncio.run(judge(wrong)) == 0.0


@pytest.mark.parametrize("name", ["exact", "math", "multiple_choice"])
def test_verifiers_that_need_an_answer_alone_suit_openrlhf(name: str) -> None:
    options, columns, right, wrong = CASES[name]
    reward = pickle.loads(pickle.dumps(openrlhf_reward(make_verifier(name, options))))
    labels = [columns["answer"]] * 2
    result = reward([f"p{right}", f"p{wrong}"], ["p", "p"], labels)
    assert result["rewards"].tolist() == [1.0, 0.0]


def test_openrlhf_has_one_column_for_whatever_a_verifier_needs() -> None:
    verifier = make_verifier("code", {"time_limit_ms": 2000})

    def passes(completion: str, answer: str) -> Any:
        return verifier.verify(completion, answer)

    _, _, right, wrong = CASES["code"]
    tests = '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}'
    result = openrlhf_reward(passes)([f"p{right}", f"p{wrong}"], ["p", "p"], [tests] * 2)
    assert result["rewards"].tolist() == [1.0, 0.0]
