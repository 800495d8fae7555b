"""The scorers over verifiers: where they read what they need, and how a verdict becomes a score."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from rewardsvc.errors import ConfigError, DeadlinePassedError, ItemErrorCode
from rewardsvc.scorers import scorer_class
from rewardsvc.scorers._verdicts import score_of
from rewardsvc.scoring import JsonValue, Message, Sample, Score, Scorer, Verdict
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.context import CallContext, call_context
from rewardsvc.verifiers import ErrorKind, Status
from rewardsvc.verifiers import Verdict as VerifierVerdict


def build(**config: Any) -> Scorer:
    cls = scorer_class(config["type"])
    env = BuildEnv(
        name="it",
        base_dir=Path(),
        child=cast("Any", None),
        engine=cast("Any", None),
    )
    return cls(cls.Config(**config), env)


def score(scorer: Scorer, *samples: Sample) -> list[Score]:
    return asyncio.run(scorer.score(samples))


def code_of(score: Score) -> ItemErrorCode | None:
    return score.error.code if score.error else None


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.ERROR])
def test_every_verdict_with_a_reward_is_a_score(status: Status) -> None:
    result = score_of(VerifierVerdict(status=status, reward=0.25, explanation="so"))
    assert (result.value, result.verdict, result.explanation) == (0.25, Verdict(status), "so")


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_verdict_without_a_reward_is_an_error(kind: ErrorKind) -> None:
    result = score_of(VerifierVerdict.failed(kind, "because"))
    assert result.value is None
    assert result.error is not None
    assert result.error.code == kind.value
    assert result.error.message == "because"


def test_math_scores_right_wrong_and_broken_samples_side_by_side() -> None:
    scores = score(
        build(type="math"),
        Sample(completion=r"\boxed{0.5}", answer="1/2"),
        Sample(completion=r"\boxed{3}", answer="1/2"),
        Sample(completion="no idea", answer="1/2"),
        Sample(completion=r"\boxed{3}", answer="[1, 2"),
        Sample(completion=r"\boxed{3}"),
        Sample(completion=(1, 2, 3), answer="3"),
        Sample(completion=(Message("assistant", r"\boxed{2x}"),), answer="x + x"),
    )
    assert [s.value for s in scores] == [1.0, 0.0, 0.0, None, None, None, 1.0]
    assert scores[2].verdict is Verdict.NO_ANSWER
    assert [code_of(s) for s in scores[3:6]] == [
        ItemErrorCode.BAD_REFERENCE,
        ItemErrorCode.BAD_REFERENCE,
        ItemErrorCode.INVALID_SAMPLE,
    ]


def test_math_starts_and_closes() -> None:
    async def lifecycle() -> None:
        scorer = build(type="math", num_workers=1)
        await scorer.start()
        await scorer.close()

    asyncio.run(lifecycle())


def test_math_that_cannot_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scorer = build(type="math", memory_mib=777)  # limits of its own, so a pool of its own
    with pytest.raises(ConfigError, match=r"scorers\.it: .*rewardsvc\[math\]"):
        asyncio.run(scorer.start())


def test_math_stops_at_the_callers_deadline() -> None:
    async def late() -> None:
        with call_context(CallContext(deadline=time.monotonic() - 1)):
            await build(type="math").score([Sample(completion=r"\boxed{2x}", answer="x")])

    with pytest.raises(DeadlinePassedError):
        asyncio.run(late())


def test_format_reads_the_completion() -> None:
    right, wrong, ids = score(
        build(type="format", preset="think"),
        Sample(completion="<think>a</think>b"),
        Sample(completion="b"),
        Sample(completion=(1,)),
    )
    assert (right.value, right.verdict) == (1.0, Verdict.ACCEPTED)
    assert (wrong.value, wrong.verdict) == (0.0, Verdict.WRONG_ANSWER)
    assert code_of(ids) is ItemErrorCode.INVALID_SAMPLE


@pytest.mark.parametrize(
    "config", [{}, {"preset": "think", "pattern": "a"}, {"preset": "thinking"}, {"pattern": "("}]
)
def test_format_refuses_a_section_without_one_good_shape(config: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        build(type="format", **config)


def test_exact_compares_with_the_answer() -> None:
    scores = score(
        build(type="exact", extract="last_line", ignore_case=True),
        Sample(completion="so\nparis", answer="Paris"),
        Sample(completion="Rome", answer="Paris"),
        Sample(completion="Rome"),
    )
    assert [s.value for s in scores] == [1.0, 0.0, None]
    assert code_of(scores[2]) is ItemErrorCode.BAD_REFERENCE


@pytest.mark.parametrize(
    ("metadata", "answer"),
    [
        ({"numbers": [2, 3, 5], "target": 16}, None),
        ({"nums": [2, 3, 5], "target": 16}, None),
        ({"numbers": [2.0, 3.0, 5.0], "target": 16.0}, None),
        ({"numbers": [2, 3, 5]}, "16"),
    ],
)
def test_countdown_reads_numbers_and_target(
    metadata: dict[str, JsonValue], answer: str | None
) -> None:
    right, wrong = score(
        build(type="countdown"),
        Sample(completion="(3+5)*2", metadata=metadata, answer=answer),
        Sample(completion="3+5*2", metadata=metadata, answer=answer),
    )
    assert (right.value, wrong.value) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("metadata", "answer", "named"),
    [
        ({}, "16", "metadata.numbers"),
        ({"numbers": "2 3 5", "target": 16}, None, "metadata.numbers"),
        ({"numbers": [2, "3"], "target": 16}, None, "metadata.numbers"),
        ({"numbers": [2, True], "target": 16}, None, "metadata.numbers"),
        ({"numbers": [2, float("nan")], "target": 16}, None, "metadata.numbers"),
        ({"numbers": [], "target": 16}, None, "numbers"),
        ({"numbers": [2, 3]}, None, "answer"),
        ({"numbers": [2, 3]}, "six", "answer"),
        ({"numbers": [2, 3]}, "9" * 5000, "answer"),
        ({"numbers": [2, 3], "target": 6.5}, None, "metadata.target"),
    ],
)
def test_countdown_names_the_bad_reference(
    metadata: dict[str, JsonValue], answer: str | None, named: str
) -> None:
    bad, good = score(
        build(type="countdown"),
        Sample(completion="2*3", metadata=metadata, answer=answer),
        Sample(completion="2*3", metadata={"numbers": [2, 3], "target": 6}),
    )
    assert code_of(bad) is ItemErrorCode.BAD_REFERENCE
    assert bad.error is not None
    assert named in bad.error.message
    assert len(bad.error.message) < 300
    assert good.value == 1.0
