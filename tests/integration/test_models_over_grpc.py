"""Models behind a real server: the wire changes no score, and bad samples harm no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny_models
import torch
import transformers

from rewardsvc.v1 import reward_pb2 as pb

DEADLINE_S = 60.0


@pytest.fixture
async def served(tmp_path: Path, connect: Callable[..., Any]) -> Any:
    """A server with an outcome model, a process model, a causal model, and one that is gone."""
    tiny_models.write_reward_model(tmp_path / "rm", "qwen2")
    tiny_models.write_checkpoint(
        tmp_path / "prm", "llama", "AutoModelForTokenClassification", num_labels=2
    )
    tiny_models.write_causal_lm(tmp_path / "lm", "mistral")
    return await connect("""
server: {port: 0}
engine: {device: cpu, num_torch_threads: 1}
scorers:
  rm: {type: orm, model: ./rm}
  prm: {type: prm, model: ./prm, step_token: <extra_0>}
  lm: {type: causal_lm, model: ./lm}
  gone: {type: orm, model: ./gone}
""")


def request(scorer: str, completions: list[str]) -> pb.ScoreRequest:
    samples = [pb.Sample(prompt_text="ab", completion_text=text) for text in completions]
    return pb.ScoreRequest(scorer=scorer, samples=samples)


async def test_scores_over_grpc_equal_plain_transformers_and_bad_samples_fail_alone(
    served: Any, tmp_path: Path
) -> None:
    completions = ["cd", "", "e" * 500, "x+1=2", "c" * 60]
    reply = await served.reward.Score(request("rm", completions), timeout=DEADLINE_S)
    values = np.frombuffer(reply.batch.values, "<f4")

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "rm", dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "rm")
    for text, value in zip(completions, values, strict=True):
        if len(text) == 500:
            assert np.isnan(value)
            continue
        with torch.inference_mode():
            expected = model(**tokenizer("ab" + text, return_tensors="pt")).logits.item()
        assert value == pytest.approx(expected, abs=1e-5)
    (detail,) = reply.batch.details
    assert (detail.index, detail.error.code) == (2, pb.ITEM_ERROR_CODE_TOO_LONG)
    assert reply.batch.version.startswith("rm@")


async def test_steps_over_grpc_and_a_completion_without_any(served: Any) -> None:
    completions = ["a<extra_0>b<extra_0>", "ab", "c<extra_0>"]
    reply = await served.reward.Score(request("prm", completions), timeout=DEADLINE_S)
    assert np.frombuffer(reply.batch.step_counts, "<i4").tolist() == [2, 0, 1]
    steps = np.frombuffer(reply.batch.steps, "<f4")
    values = np.frombuffer(reply.batch.values, "<f4")
    assert values[0] == steps[:2].min()
    assert values[2] == steps[2]
    (detail,) = reply.batch.details
    assert (detail.index, detail.error.code) == (1, pb.ITEM_ERROR_CODE_NO_STEPS)


async def test_ten_thousand_samples_in_one_call_are_scored(served: Any) -> None:
    completions = ["c" * (i % 20) for i in range(10_000)]
    reply = await served.reward.Score(request("rm", completions), timeout=DEADLINE_S)
    values = np.frombuffer(reply.batch.values, "<f4").reshape(500, 20)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), atol=1e-5)
    assert values[0].std() > 0.01


async def test_logprobs_over_grpc_and_a_scorer_that_has_none(served: Any) -> None:
    ids = {"prompt_ids": np.int32([1, 20]).tobytes(), "completion_ids": np.int32([21]).tobytes()}
    call = {"sequences": [pb.TokenSequence(**ids)], "entropy": True}
    reply = await served.reward.TokenLogProbs(
        pb.TokenLogProbsRequest(scorer="lm", **call), timeout=DEADLINE_S
    )
    assert np.frombuffer(reply.logprobs, "<f4").item() < 0
    assert np.frombuffer(reply.entropies, "<f4").item() > 0
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.reward.TokenLogProbs(
            pb.TokenLogProbsRequest(scorer="rm", **call), timeout=DEADLINE_S
        )
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_model_whose_folder_is_gone_is_named_and_the_others_serve(served: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="gone") as refused:
        await served.reward.Score(request("gone", ["a"]), timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    reply = await served.reward.Score(request("rm", ["a"]), timeout=DEADLINE_S)
    assert np.isfinite(np.frombuffer(reply.batch.values, "<f4")).all()
