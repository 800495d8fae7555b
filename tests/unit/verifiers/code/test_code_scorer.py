"""The `code` scorer: verdicts of the verifier as scores, sample by sample."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from rewardsvc.errors import ConfigError, DeadlinePassedError, ItemErrorCode
from rewardsvc.scorers.code import Code, CodeConfig
from rewardsvc.scorers.math import Math
from rewardsvc.scorers.verifier import Verifier as VerifierScorer
from rewardsvc.scorers.verifier import VerifierConfig
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.context import CallContext, call_context
from rewardsvc.scoring.types import Sample, Verdict

ENV = BuildEnv(
    name="tests", base_dir=Path("/"), child=lambda name: cast(Any, None), engine=cast(Any, None)
)
TESTS = json.dumps(
    {"type": "function", "function": "add", "tests": [{"args": [1, 2], "expected": 3}]}
)


def sample(code: str, tests: str | None = TESTS) -> Sample:
    return Sample(completion=f"```python\n{code}\n```", tests_json=tests)


@pytest.fixture
async def scorer() -> AsyncIterator[Code]:
    made = Code(CodeConfig(type="code", time_limit_ms=500, num_slots=2), ENV)
    await made.start()
    yield made
    await made.close()


async def test_scores_are_in_order_and_a_bad_sample_harms_no_other(scorer: Code) -> None:
    scores = await scorer.score(
        [
            sample("def add(a, b): return a + b"),
            sample("def add(a, b): return a - b"),
            sample("def add(a, b): return 3", None),
            sample("def add(a, b): return 3", "{"),
            Sample(completion="no code", tests_json=TESTS),
            Sample(completion=(1, 2, 3), tests_json=TESTS),
            sample("def add(a, b):\n    while True: pass"),
            sample("def add(a, b): return a + b", '{"inputs": [], "outputs": []}'),
        ]
    )
    assert [s.value for s in scores] == [1.0, 0.0, None, None, 0.0, None, 0.0, None]
    assert [s.verdict for s in scores] == [
        Verdict.ACCEPTED,
        Verdict.WRONG_ANSWER,
        None,
        None,
        Verdict.NO_ANSWER,
        None,
        Verdict.TIME_LIMIT,
        None,
    ]
    assert [s.error.code for s in scores if s.error] == [
        ItemErrorCode.BAD_REFERENCE,
        ItemErrorCode.BAD_REFERENCE,
        ItemErrorCode.INVALID_SAMPLE,
        ItemErrorCode.BAD_REFERENCE,
    ]


async def test_deadline_of_the_call_is_kept(scorer: Code) -> None:
    slow = sample("import time\ndef add(a, b):\n    time.sleep(3)\n    return a + b")
    soon = CallContext(deadline=time.monotonic() + 0.3)
    with call_context(soon), pytest.raises(DeadlinePassedError, match="tests"):
        await scorer.score([slow])


async def test_unknown_language_is_a_configuration_error() -> None:
    scorer = Code(CodeConfig(type="code", language="cobol"), ENV)
    with pytest.raises(ConfigError, match=r"scorers\.tests: language is 'cobol'"):
        await scorer.start()


async def test_fraction_credit() -> None:
    scorer = Code(CodeConfig(type="code", credit="fraction", num_slots=2), ENV)  # type: ignore[arg-type]
    await scorer.start()
    try:
        suite = json.dumps({"inputs": ["1", "2"], "outputs": ["1", "3"]})
        (score,) = await scorer.score([sample("print(input())", suite)])
        assert (score.value, score.verdict) == (0.5, Verdict.PARTIAL)
    finally:
        await scorer.close()


async def test_the_code_verifier_is_a_scorer_by_its_name_as_well() -> None:
    config = VerifierConfig(type="verifier", name="code", options={"time_limit_ms": 2000})
    scorer = VerifierScorer(config, ENV)
    scores = await scorer.score(
        [
            sample("def add(a, b): return a + b"),
            sample("def add(a, b): return a - b"),
            sample("def add(a, b): return a + b", '["assert add(1, 2) == 3"]'),
            sample("def add(a, b): return a + b", "{"),
            sample("def add(a, b): return a + b", None),
        ]
    )
    await scorer.close()
    assert [score.value for score in scores] == [1.0, 0.0, 1.0, None, None]


@pytest.mark.parametrize("make", [Code, Math])
async def test_a_bug_is_the_error_of_its_sample_and_no_reward(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"type": "code", "num_slots": 2} if make is Code else {"type": "math"}
    scorer = make(make.Config(**config), ENV)
    await scorer.start()
    try:
        verifier = type(scorer._verifier)
        verify = verifier.verify

        def buggy(self: Any, completion: str, reference: Any) -> Any:
            if "bug" in completion:
                raise RecursionError("maximum recursion depth exceeded")
            return verify(self, completion, reference)

        monkeypatch.setattr(verifier, "verify", buggy)
        tests = '["assert add(1, 2) == 3"]'
        right = "```python\ndef add(a, b): return a + b\n```\n\\boxed{3}"
        samples = [
            Sample(completion=text, tests_json=tests, answer="3") for text in ("bug", right, "bug")
        ]
        scores = await scorer.score(samples)
    finally:
        await scorer.close()
    assert [score.value for score in scores] == [None, 1.0, None]
    assert [score.error.code for score in scores if score.error] == [ItemErrorCode.INTERNAL] * 2
