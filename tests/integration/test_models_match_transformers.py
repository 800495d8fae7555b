"""Scores through the engine equal a plain transformers forward of each sample alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from fixtures_models import StartScorer

from rewardsvc.scoring import Sample
from rewardsvc.scoring.tokens import TokenSequence

TOLERANCE = 1e-5
CAUSAL = ("llama", "qwen2", "qwen3", "mistral")
FAMILIES = ("bert", "roberta", *CAUSAL)


def random_samples(num_samples: int, *, seed: int = 0, longest: int = 50) -> list[Sample]:
    """Texts of mixed lengths; one with an empty completion."""
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choices("abcxyz 0123+-=\n", k=rng.randint(1, longest)))

    samples = [Sample(prompt=text(), completion=text()) for _ in range(num_samples - 1)]
    return [*samples, Sample(prompt=text(), completion="")]


def plain(folder: Path, auto_class: str) -> tuple[Any, Any]:
    """Model and tokenizer as anybody would load them."""
    model = getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def plain_scores(folder: Path, samples: list[Sample]) -> list[float]:
    model, tokenizer = plain(folder, "AutoModelForSequenceClassification")
    inputs = [tokenizer(f"{s.prompt}{s.completion}", return_tensors="pt") for s in samples]
    return [model(**one).logits[0, 0].item() for one in inputs]


@pytest.mark.parametrize("family", FAMILIES)
async def test_orm_scores_equal_plain_transformers_in_any_order(
    family: str, tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "rm", family)
    samples = random_samples(40)
    expected = plain_scores(folder, samples)
    assert np.std(expected) > 0.05, "a model that says the same of everything shows nothing"
    orm = await start_scorer("orm", model=folder)

    order = random.Random(1).sample(range(len(samples)), len(samples))
    scores = await orm.score([samples[i] for i in order])

    values = [score.value for score in scores]
    assert values == pytest.approx([expected[i] for i in order], abs=TOLERANCE)


@pytest.mark.parametrize("family", CAUSAL)
async def test_pad_token_that_is_also_eos_is_read_where_attention_ends(
    family: str, tmp_path: Path, start_scorer: StartScorer
) -> None:
    eos = tiny_models.VOCAB["</s>"]
    folder = tiny_models.write_reward_model(tmp_path / "rm", family, pad_token_id=eos)
    samples = [Sample(prompt="ab", completion="cd</s>"), Sample(prompt="abcd", completion="efghij")]
    orm = await start_scorer("orm", model=folder)
    model, tokenizer = plain(folder, "AutoModelForSequenceClassification")
    with torch.inference_mode():
        expected = []
        for sample in samples:
            ids = tokenizer(f"{sample.prompt}{sample.completion}", return_tensors="pt").input_ids
            hidden = model.model(input_ids=ids).last_hidden_state
            expected.append(model.score(hidden[0, -1]).item())

    scores = await orm.score(samples)

    assert [score.value for score in scores] == pytest.approx(expected, abs=TOLERANCE)


async def test_text_pairs_of_an_encoder_equal_plain_transformers(
    tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_reward_model(tmp_path / "rm", "bert")
    samples = random_samples(20)
    model, tokenizer = plain(folder, "AutoModelForSequenceClassification")
    with torch.inference_mode():
        expected = [
            model(
                **tokenizer(s.prompt, s.completion, return_tensors="pt", return_token_type_ids=True)
            ).logits.item()
            for s in samples
        ]
    orm = await start_scorer("orm", model=folder, pair=True)

    scores = await orm.score(samples)

    assert [score.value for score in scores] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("family", ["bert", *CAUSAL])
async def test_prm_steps_equal_plain_transformers(
    family: str, tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_checkpoint(
        tmp_path / "prm", family, "AutoModelForTokenClassification", num_labels=2
    )
    texts = ["a+b<extra_0>c=d<extra_0>", "x<extra_0>", "1+1=2<extra_0>so 3<extra_0>done<extra_0>"]
    samples = [Sample(prompt="ab", completion=text) for text in texts]
    model, tokenizer = plain(folder, "AutoModelForTokenClassification")
    expected = []
    for sample in samples:
        inputs = tokenizer(f"{sample.prompt}{sample.completion}", return_tensors="pt")
        with torch.inference_mode():
            good = model(**inputs).logits[0].softmax(-1)[:, 1]
        expected.append(good[inputs.input_ids[0] == tiny_models.VOCAB["<extra_0>"]].tolist())
    prm = await start_scorer("prm", model=folder, step_token="<extra_0>", reduce="prod")

    scores = await prm.score(samples)

    for score, steps in zip(scores, expected, strict=True):
        assert score.steps == pytest.approx(steps, abs=TOLERANCE)
        assert score.value == pytest.approx(np.prod(steps), abs=TOLERANCE)


@pytest.mark.parametrize("read", ["at", "before"])
@pytest.mark.parametrize("family", ["mistral", "gemma2"])
async def test_prm_on_a_causal_lm_compares_two_tokens_logits(
    family: str, read: str, tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_causal_lm(tmp_path / "prm", family)
    sample = Sample(prompt="ab", completion="c+d step a-b step")
    model, tokenizer = plain(folder, "AutoModelForCausalLM")
    inputs = tokenizer(f"{sample.prompt}{sample.completion}", return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    places = (inputs.input_ids[0] == tiny_models.VOCAB["step"]).nonzero().squeeze(-1)
    places = places if read == "at" else places - 1
    pair = [tiny_models.VOCAB["+"], tiny_models.VOCAB["-"]]
    expected = logits[places][:, pair].softmax(-1)[:, 0].tolist()
    prm = await start_scorer(
        "prm", model=folder, step_token="step", good_token="+", bad_token="-", read=read
    )

    (score,) = await prm.score([sample])

    assert score.steps == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("family", [*CAUSAL, "gemma2", "granite"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_token_logprobs_equal_log_softmax_of_full_logits(
    family: str, temperature: float, tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_causal_lm(tmp_path / "lm", family)
    rng = np.random.default_rng(0)
    sequences = [
        TokenSequence(
            prompt_ids=rng.integers(1, tiny_models.VOCAB_SIZE, p).astype(np.int32),
            completion_ids=rng.integers(1, tiny_models.VOCAB_SIZE, c).astype(np.int32),
        )
        for p, c in [(1, 1), (3, 40), (20, 7), (5, 0), (2, 90)]
    ]
    model, _ = plain(folder, "AutoModelForCausalLM")
    lm = await start_scorer("causal_lm", model=folder)

    found = await lm.token_logprobs(sequences, temperature=temperature, entropy=True)
    without_entropy = await lm.token_logprobs(sequences, temperature=temperature)

    for sequence, scores, bare in zip(sequences, found, without_entropy, strict=True):
        ids = np.concatenate([sequence.prompt_ids, sequence.completion_ids])
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(ids)[None].long()).logits[0]
        logprobs = (logits / temperature).log_softmax(-1)[len(sequence.prompt_ids) - 1 : -1]
        targets = torch.from_numpy(sequence.completion_ids).long()
        expected = logprobs.gather(-1, targets[:, None]).squeeze(-1)
        np.testing.assert_allclose(scores.logprobs, expected, atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_allclose(bare.logprobs, expected, atol=TOLERANCE, rtol=TOLERANCE)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        np.testing.assert_allclose(scores.entropies, entropies, atol=TOLERANCE, rtol=TOLERANCE)
        assert scores.logprobs.dtype == scores.entropies.dtype == np.float32
        assert bare.entropies.size == 0


async def test_causal_lm_scores_a_completion_by_its_summed_logprob(
    tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_causal_lm(tmp_path / "lm")
    model, tokenizer = plain(folder, "AutoModelForCausalLM")
    prompt, completion = "ab ", "cd ef"
    ids = tokenizer(prompt + completion, return_tensors="pt").input_ids
    num_prompt = len(tokenizer(prompt).input_ids)
    with torch.inference_mode():
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    chosen = logprobs[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)[num_prompt - 1 :]
    lm = await start_scorer("causal_lm", model=folder)

    full, empty = await lm.score(
        [Sample(prompt=prompt, completion=completion), Sample(prompt=prompt, completion="")]
    )

    assert full.value == pytest.approx(chosen.sum().item(), abs=TOLERANCE * len(chosen))
    assert full.components["per_token"] == pytest.approx(chosen.mean().item(), abs=TOLERANCE)
    assert empty.value == 0.0


async def test_trl_value_head_equals_its_formula(tmp_path: Path, start_scorer: StartScorer) -> None:
    folder = tiny_models.write_causal_lm(tmp_path / "rm", "qwen2")
    weight, bias = torch.randn(1, 32, generator=torch.manual_seed(3)), torch.tensor([0.25])
    tiny_models.add_tensors(folder, {"v_head.summary.weight": weight, "v_head.summary.bias": bias})
    samples = random_samples(10)
    model, tokenizer = plain(folder, "AutoModelForCausalLM")
    with torch.inference_mode():
        expected = [
            (
                model.model(**tokenizer(f"{s.prompt}{s.completion}", return_tensors="pt"))
                .last_hidden_state[0, -1]
                .matmul(weight[0])
                + bias
            ).item()
            for s in samples
        ]
    orm = await start_scorer("orm", model=folder)

    scores = await orm.score(samples)

    assert [s.value for s in scores] == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)


async def test_openrlhf_value_head_with_the_checkpoints_mean_and_std(
    tmp_path: Path, start_scorer: StartScorer
) -> None:
    folder = tiny_models.write_checkpoint(tmp_path / "rm", "llama", "AutoModel", mean=0.5, std=2.0)
    head = torch.randn(1, 32, generator=torch.manual_seed(4))
    tiny_models.add_tensors(folder, {"score.weight": head})
    sample = Sample(prompt="abc", completion="def")
    model, tokenizer = plain(folder, "AutoModel")
    with torch.inference_mode():
        hidden = model(**tokenizer("abcdef", return_tensors="pt")).last_hidden_state[0, -1]
    raw = hidden.dot(head[0]).item()
    orm = await start_scorer("orm", model=folder, normalize="checkpoint")

    (score,) = await orm.score([sample])

    assert score.components["raw"] == pytest.approx(raw, abs=TOLERANCE, rel=TOLERANCE)
    assert score.value == pytest.approx((raw - 0.5) / 2.0, abs=TOLERANCE, rel=TOLERANCE)
