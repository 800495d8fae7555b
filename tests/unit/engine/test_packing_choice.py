"""Which models are packed, and what becomes of those that are not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fixtures_models import StartScorer
from packed_models import MAX_LENGTH, Case, make_model
from tiny_models import GROUPED, SHAPE, VOCAB_SIZE, write_reward_model

from rewardsvc.engine.isolate import run_isolated
from rewardsvc.engine.packing.attention import NAME
from rewardsvc.engine.packing.choice import Wishes, choose_backend
from rewardsvc.engine.packing.obstacles import length_limit, obstacle
from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead, TensorBatch, TorchBackend
from rewardsvc.engine.types import Encoded
from rewardsvc.errors import ItemError
from rewardsvc.scoring import Sample

CLASSIFIER = "AutoModelForSequenceClassification"


def chosen_for(model: Any, **wishes: Any) -> TorchBackend:
    reading = HiddenStates(model.base_model, ModuleHead(model.score))
    return choose_backend(
        model, reading, device="cpu", wishes=Wishes(**{"max_length": MAX_LENGTH} | wishes)
    )


def item(*ids: int) -> Encoded:
    return Encoded(
        token_ids=np.asarray(ids, np.int32), positions=np.asarray([len(ids) - 1], np.int32)
    )


def assert_padded(backend: TorchBackend, reason: str) -> None:
    assert backend.batching.kind == "padded"
    assert reason in backend.batching.reason


def test_attention_that_was_asked_for_is_used() -> None:
    model = make_model("llama", CLASSIFIER, num_labels=1)
    assert_padded(chosen_for(model, attention="sdpa"), "attention: sdpa was asked for")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["bloom", "deberta_v2"])
def test_models_with_attention_of_their_own_are_padded(family: str) -> None:
    case = Case(family, "orm")
    assert_padded(case.backend, "AttentionInterface")


def test_recurrent_layers_and_chunks_and_encoder_decoders_are_told_from_the_configuration() -> None:
    hybrid = transformers.Qwen3NextConfig(**SHAPE | GROUPED | {"head_dim": 8})
    chunked = transformers.Llama4TextConfig(**SHAPE | GROUPED | {"attention_chunk_size": 16})
    seq2seq = transformers.T5Config(d_model=32, num_layers=1, num_heads=4, vocab_size=VOCAB_SIZE)
    for config, reason in (
        (hybrid, "running state (linear_attention"),
        (chunked, "chunks of 16 tokens"),
        (seq2seq, "an encoder and a decoder"),
    ):
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config)
        assert reason in obstacle(model, attention="auto", max_length=64)
    assert "chunks" not in obstacle(
        transformers.AutoModelForCausalLM.from_config(chunked), attention="auto", max_length=16
    )


class Disobedient(transformers.LlamaForSequenceClassification):
    """Code of a checkpoint that says it uses the interface and does not."""

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""


class Shifting(transformers.LlamaForSequenceClassification):
    """A model that counts its positions itself."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    @staticmethod
    def _count(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        ids = args[0] if args else kwargs["input_ids"]
        return args, kwargs | {"position_ids": torch.arange(ids.shape[1])[None]}


class Leaky(transformers.LlamaForSequenceClassification):
    """A model with a state that runs on from token to token, as convolutions and SSMs have."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(lambda _m, _a, out: out + out.roll(1, 1))


@pytest.mark.parametrize("cls", [Disobedient, Shifting, Leaky])
def test_model_that_packed_would_score_otherwise_is_padded_and_scores_as_before(
    cls: type[transformers.PreTrainedModel],
) -> None:
    torch.manual_seed(0)
    model = cls(transformers.LlamaConfig(**SHAPE | GROUPED | {"num_labels": 1})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    model.config._attn_implementation = "sdpa"
    ids = torch.tensor([[11, 12, 13, 14]])
    before = model(input_ids=ids).logits.item()
    backend = chosen_for(model)
    assert_padded(backend, "")
    assert backend.batching.reason
    assert model.config._attn_implementation == "sdpa"
    assert backend.run([item(11, 12, 13, 14)])[0].item() == pytest.approx(before, abs=1e-6)


def test_sequences_beyond_a_length_dependent_rope_run_alone() -> None:
    config = transformers.Phi3Config(
        **SHAPE | GROUPED,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 32,
            "factor": 4.0,
        },
        num_labels=1,
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    assert length_limit(model) == 32
    backend = chosen_for(model)
    assert backend.batching.kind == "packed"
    short, long = item(*range(10, 30)), item(*range(10, 55))
    assert backend.shape.select([long, short, short], 1000) == [0]
    assert sorted(backend.shape.select([short, long, short], 1000)) == [0, 2]


def test_experts_are_deterministic_one_sequence_at_a_time() -> None:
    case = Case("gpt_oss", "orm", deterministic=True)
    assert case.backend.batching.kind == "alone"
    assert "experts" in case.backend.batching.reason
    items = [item(*range(10, 10 + n)) for n in (3, 20, 9)]
    assert case.backend.shape.select(items, 1000) == [0]
    together = [numbers.tobytes() for numbers in case.backend.run(items)]
    assert together == [case.backend.run([one])[0].tobytes() for one in items]


async def test_scorer_says_how_its_batches_are_computed(
    tmp_path: Path, start_scorer: StartScorer, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_reward_model(tmp_path / "model")
    with caplog.at_level(logging.INFO, logger="rewardsvc.scorers._served"):
        packed = await start_scorer("orm", model=model)
        exact = await start_scorer("orm", model=model, deterministic=True)
        padded = await start_scorer("orm", model=model, attention="eager")
    assert packed.batching == "packed, shares prefixes"
    assert exact.batching == "packed, shares prefixes, deterministic"
    assert padded.batching == "padded (attention: eager was asked for, and only auto packs)"
    assert [record.levelname for record in caplog.records[-3:]] == ["INFO", "INFO", "WARNING"]
    samples = [Sample(prompt="a+b=", completion=text) for text in ("c", "step good", "bad")]
    values = [[s.value for s in await scorer.score(samples)] for scorer in (packed, exact, padded)]
    np.testing.assert_allclose(values[0], values[2], atol=1e-5)
    np.testing.assert_allclose(values[1], values[2], atol=1e-5)
    again = [(await exact.score([sample]))[0].value for sample in samples]
    assert again == values[1]


def failing(backend: TorchBackend, should_fail: Any) -> list[int]:
    """Makes the backend's model fail for some batches; gives the sizes of those that ran."""
    reading, sizes = backend._reading, []

    def wrapped(batch: TensorBatch) -> torch.Tensor:
        if (error := should_fail(batch.inputs["input_ids"])) is not None:
            raise error
        sizes.append(len(batch.items))
        assert reading is not None
        return reading(batch)

    backend._reading = wrapped
    return sizes


def test_packed_batch_that_does_not_fit_in_memory_is_split() -> None:
    case = Case("llama", "orm")
    items = [case.item([40 + n, *range(10, 20)]) for n in range(8)]
    sizes = failing(
        case.backend,
        lambda ids: torch.OutOfMemoryError("no room") if ids.shape[1] > 30 else None,
    )
    answers = run_isolated(case.backend, items, model="m")
    assert max(sizes) < 8
    for one, answer in zip(items, answers, strict=True):
        np.testing.assert_allclose(answer, case.expected(one), atol=1e-5)


def test_poisoned_sequence_of_a_packed_batch_fails_by_itself() -> None:
    case = Case("llama", "orm")
    prefix = [*range(10, 30)]
    items = [case.item([*prefix, 40 + n]) for n in range(7)]
    failing(case.backend, lambda ids: RuntimeError("boom") if (ids == 43).any() else None)
    answers = run_isolated(case.backend, items, model="m")
    assert [isinstance(answer, ItemError) for answer in answers] == [n == 3 for n in range(7)]


def test_models_of_one_process_do_not_see_each_others_plans() -> None:
    first, second = Case("llama", "orm"), Case("mistral", "orm")
    items = [first.item([*range(10, 40), n]) for n in (50, 51)]
    before = [numbers.tobytes() for numbers in first.backend.run(items)]
    second.backend.run(items[:1])
    assert [numbers.tobytes() for numbers in first.backend.run(items)] == before
    assert first.model.config._attn_implementation == NAME
