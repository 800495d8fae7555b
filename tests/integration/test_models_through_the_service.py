"""Models behind a real server, asked by the real client: scores are what transformers computes."""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny_models
import torch
import transformers

from rewardsvc.policy_client import AsyncRewardClient, ItemErrorCode, ScorerUnusable
from rewardsvc.v1 import admin_pb2
from rewardsvc.v1 import reward_pb2 as pb

TOLERANCE = 1e-5
FAMILIES = ("bert", "llama", "qwen2", "mistral")
PROMPTS = ["a+b", "", "1+1=2, so", "x"] * 3
COMPLETIONS = ["c", "abc 123", "", "some longer words = 42", "q", "good"] * 2
PRM_COMPLETIONS = ["a<extra_0>", "a<extra_0>b<extra_0>", "a+b=c<extra_0>d<extra_0>e<extra_0>"]

Connect = Callable[..., Any]


@torch.inference_mode()
def plain_scores(folder: Path, prompts: list[str], completions: list[str]) -> list[float]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [
        model(**tokenizer(p + c, return_tensors="pt")).logits[0, 0].item()
        for p, c in zip(prompts, completions, strict=True)
    ]


@torch.inference_mode()
def plain_steps(folder: Path, completions: list[str]) -> list[list[float]]:
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    steps = []
    for completion in completions:
        inputs = tokenizer(f"ab{completion}", return_tensors="pt")
        good_T = model(**inputs).logits[0].softmax(-1)[:, 1]
        at = inputs["input_ids"][0] == tiny_models.VOCAB["<extra_0>"]
        steps.append(good_T[at].tolist())
    return steps


@torch.inference_mode()
def plain_logprobs(
    folder: Path, prompt: list[int], completion: list[int], temperature: float
) -> tuple[list[float], list[float]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    logits_TV = model(torch.tensor([prompt + completion])).logits[0] / temperature
    table_TV = logits_TV.double().log_softmax(-1)[len(prompt) - 1 : -1]
    chosen = table_TV.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return chosen.tolist(), (-(table_TV.exp() * table_TV).sum(-1)).tolist()


def client_of(server: Any) -> AsyncRewardClient:
    return AsyncRewardClient(f"127.0.0.1:{server.server.port}", timeout_s=60.0)


async def test_outcome_and_process_rewards_and_log_probs_arrive_unchanged(
    connect: Connect, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {}
    for family in FAMILIES:
        orm = tiny_models.write_reward_model(tmp_path / f"orm-{family}", family)
        prm = tiny_models.write_checkpoint(
            tmp_path / f"prm-{family}", family, "AutoModelForTokenClassification", num_labels=2
        )
        sections[f"orm-{family}"] = {"type": "orm", "model": str(orm)}
        sections[f"prm-{family}"] = {
            "type": "prm",
            "model": str(prm),
            "step_token": "<extra_0>",
            "reduce": "min",
        }
    lm = tiny_models.write_causal_lm(tmp_path / "lm", "qwen2")
    sections["lm"] = {"type": "causal_lm", "model": str(lm)}
    config = {"server": {"port": 0}, "engine": {"num_torch_threads": 1}, "scorers": sections}
    server = await connect(json.dumps(config))

    async with client_of(server) as client:
        for family in FAMILIES:
            batch = await client.score(f"orm-{family}", PROMPTS, COMPLETIONS)
            expected = plain_scores(tmp_path / f"orm-{family}", PROMPTS, COMPLETIONS)
            np.testing.assert_allclose(batch.values, expected, atol=TOLERANCE)

            steps = await client.score(f"prm-{family}", ["ab"] * 3, PRM_COMPLETIONS)
            wanted = plain_steps(tmp_path / f"prm-{family}", PRM_COMPLETIONS)
            assert steps.steps is not None
            for got, want in zip(steps.steps, wanted, strict=True):
                np.testing.assert_allclose(got, want, atol=TOLERANCE)
            np.testing.assert_allclose(steps.values, list(map(min, wanted)), atol=TOLERANCE)

        prompts, completions = [[1, 10, 11], [1, 12]], [[13, 14, 15, 16], [17]]
        answer = await client.token_logprobs(
            "lm", prompts, completions, temperature=0.7, entropy=True
        )
        assert answer.entropies is not None
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            logprobs, entropies = plain_logprobs(lm, prompt, completion, 0.7)
            np.testing.assert_allclose(answer.logprobs[i], logprobs, atol=TOLERANCE)
            np.testing.assert_allclose(answer.entropies[i], entropies, atol=TOLERANCE)

    metrics = server.server.metrics.registry
    labels = {"scorer": "lm", "outcome": "ok"}
    assert metrics.get_sample_value("rewardsvc_samples_total", labels) == 2
    assert metrics.get_sample_value("rewardsvc_scorer_seconds_count", {"scorer": "lm"}) >= 1


async def test_bad_samples_of_a_model_harm_no_neighbour(connect: Connect, tmp_path: Path) -> None:
    poison = tiny_models.VOCAB["z"]

    def poisoned(model: Any) -> None:
        model.get_input_embeddings().weight[poison] = math.nan

    orm = tiny_models.write_reward_model(tmp_path / "orm", "llama", change=poisoned)
    prm = tiny_models.write_checkpoint(
        tmp_path / "prm", "llama", "AutoModelForTokenClassification", num_labels=2
    )
    server = await connect(
        f"""
server: {{port: 0}}
engine: {{num_torch_threads: 1}}
scorers:
  orm: {{type: orm, model: {orm}, max_length: 32}}
  prm: {{type: prm, model: {prm}, step_token: "<extra_0>"}}
  gone: {{type: orm, model: {tmp_path / "nowhere"}}}
"""
    )
    async with client_of(server) as client:
        completions = ["fine", "z", "x" * 100, "", "\ud800", "fine"]
        batch = await client.score("orm", ["ab"] * 6, completions)
        assert batch.values[0] == batch.values[5]
        assert np.isfinite(batch.values[[0, 3, 5]]).all()
        codes = [error.code if error else None for error in batch.errors]
        assert codes == [
            None,
            ItemErrorCode.NON_FINITE,
            ItemErrorCode.TOO_LONG,
            None,
            ItemErrorCode.INVALID_SAMPLE,
            None,
        ]
        too_long = batch.errors[2]
        assert too_long is not None
        assert "103" in too_long.message
        assert "32" in too_long.message
        assert "truncation_side" in too_long.message

        steps = await client.score("prm", ["ab"] * 2, ["no step here", "one<extra_0>"])
        missing = steps.errors[0]
        assert missing is not None
        assert missing.code is ItemErrorCode.NO_STEPS
        assert steps.errors[1] is None

        with pytest.raises(ScorerUnusable, match="nowhere"):
            await client.score("gone", ["a"], ["b"])


async def test_ten_thousand_samples_for_a_model_in_one_call(
    connect: Connect, tmp_path: Path
) -> None:
    orm = tiny_models.write_reward_model(
        tmp_path / "orm", "llama", hidden_size=8, intermediate_size=8, num_hidden_layers=1
    )
    server = await connect(
        f"server: {{port: 0}}\nscorers: {{orm: {{type: orm, model: {orm}, bos: never}}}}"
    )
    completions = ["c" * (i % 20) + "ab" for i in range(10_000)]
    async with client_of(server) as client:
        batch = await client.score("orm", [""] * 10_000, completions)
    assert batch.mask.all()
    values = batch.values.reshape(500, 20)
    np.testing.assert_allclose(values, np.broadcast_to(values[0], (500, 20)), atol=TOLERANCE)
    assert values[0].std() > 0.01


async def test_a_reload_changes_the_version_and_the_scores(
    connect: Connect, tmp_path: Path
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "orm", "llama", seed=0)
    server = await connect(
        f"""
server: {{port: 0, admin: {{enabled: true}}}}
scorers: {{orm: {{type: orm, model: {folder}}}}}
"""
    )
    async with client_of(server) as client:
        before = await client.score("orm", PROMPTS, COMPLETIONS)
        tiny_models.write_reward_model(folder, "llama", seed=1)
        await server.admin.ReloadScorer(admin_pb2.ReloadScorerRequest(name="orm"))
        after = await client.score("orm", PROMPTS, COMPLETIONS)
    assert before.version != after.version
    assert np.abs(before.values - after.values).max() > 0.01
    np.testing.assert_allclose(
        after.values, plain_scores(folder, PROMPTS, COMPLETIONS), atol=TOLERANCE
    )


async def test_a_full_queue_refuses_with_a_delay_and_the_client_waits_it_out(
    connect: Connect, tmp_path: Path
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "orm", "llama")
    server = await connect(
        f"""
server: {{port: 0}}
engine: {{max_queue_items: 8, num_torch_threads: 1}}
scorers: {{orm: {{type: orm, model: {folder}}}}}
"""
    )
    samples = [pb.Sample(completion_text="abc")] * 4
    request = pb.ScoreRequest(scorer="orm", samples=samples)
    calls = [server.reward.Score(request) for _ in range(40)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert 0 < len(refused) < 40
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "engine.max_queue_items" in (error.details() or "")
        delays = [int(v) for k, v in error.trailing_metadata() if k == "retry-delay-ms"]
        assert len(delays) == 1
        assert delays[0] > 0
    async with client_of(server) as client:
        batches = await asyncio.gather(*(client.score("orm", [""], ["abc"]) for _ in range(40)))
    assert all(batch.mask.all() for batch in batches)

    metrics = server.server.metrics.registry
    labels = {"model": "orm"}
    computed = metrics.get_sample_value("rewardsvc_batch_items_sum", labels)
    in_flight = {"model": "orm", "source": "in_flight"}
    shared = metrics.get_sample_value("rewardsvc_reused_samples_total", in_flight)
    assert computed + shared >= 40
    assert computed < 40, "all the samples are identical"
    assert metrics.get_sample_value("rewardsvc_forward_seconds_count", labels) >= 1
    assert metrics.get_sample_value("rewardsvc_queue_items", labels) == 0
    assert metrics.get_sample_value(
        "rewardsvc_refused_calls_total", {"scorer": "orm", "status": "RESOURCE_EXHAUSTED"}
    ) >= len(refused)
