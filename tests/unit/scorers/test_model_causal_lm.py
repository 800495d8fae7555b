"""`causal_lm`: a bad sequence has an error, its neighbours have log-probs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from fixtures_models import StartScorer

from rewardsvc.errors import InvalidRequestError, ItemErrorCode
from rewardsvc.scoring import Sample
from rewardsvc.scoring.tokens import TokenSequence


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_causal_lm(tmp_path_factory.mktemp("models") / "lm")


def sequence(prompt: list[int], completion: list[int]) -> TokenSequence:
    return TokenSequence(
        prompt_ids=np.asarray(prompt, np.int32), completion_ids=np.asarray(completion, np.int32)
    )


async def test_bad_sequences_fail_alone(model: Path, start_scorer: StartScorer) -> None:
    lm = await start_scorer("causal_lm", model=model)
    good = sequence([1, 20], [21, 22])
    scores = await lm.token_logprobs(
        [
            good,
            sequence([1], [tiny_models.VOCAB_SIZE]),
            sequence([1], [-1]),
            sequence([], [20]),
            sequence([1], [20] * 500),
            sequence([1], []),
            good,
        ]
    )
    invalid, long = ItemErrorCode.INVALID_SAMPLE, ItemErrorCode.TOO_LONG
    assert [s.error and s.error.code for s in scores] == [
        None, invalid, invalid, invalid, long, None, None,
    ]  # fmt: skip
    assert [len(s.logprobs) for s in scores] == [2, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(scores[0].logprobs, scores[-1].logprobs, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
async def test_temperature_that_makes_no_distribution_is_refused(
    temperature: float, model: Path, start_scorer: StartScorer
) -> None:
    lm = await start_scorer("causal_lm", model=model)
    with pytest.raises(InvalidRequestError, match="temperature"):
        await lm.token_logprobs([sequence([1], [2])], temperature=temperature)


async def test_questions_of_different_kinds_share_a_model(
    model: Path, start_scorer: StartScorer
) -> None:
    lm = await start_scorer("causal_lm", model=model)
    one = sequence([1, 20], [21, 22])
    (cold,), (hot,), (scored,) = await asyncio.gather(
        lm.token_logprobs([one], temperature=0.5, entropy=True),
        lm.token_logprobs([one], temperature=2.0, entropy=True),
        lm.score([Sample(prompt=(1, 20), completion=(21, 22))]),
    )
    assert (cold.entropies < hot.entropies).all()
    (plain,) = await lm.token_logprobs([one])
    assert scored.value == pytest.approx(float(plain.logprobs.sum()), abs=1e-5)


async def test_completion_with_nothing_before_it_cannot_be_scored(
    model: Path, start_scorer: StartScorer
) -> None:
    lm = await start_scorer("causal_lm", model=model, bos="never")
    (score,) = await lm.score([Sample(completion="ab")])
    assert score.error is not None
    assert score.error.code is ItemErrorCode.INVALID_SAMPLE
