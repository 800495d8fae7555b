"""Packed scores are those of transformers, sample by sample, whatever the batch; and with
`deterministic` they are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_models import CAUSAL, ENCODERS, MAX_LENGTH, Case
from tiny_models import VOCAB_SIZE

from rewardsvc.engine.types import Encoded

TOLERANCE = 1e-5
FEW = settings(max_examples=6, deadline=None)

runs = st.integers(0, 5).flatmap(
    lambda seed: st.sampled_from((1, 3, 9, 20)).map(
        lambda length: np.random.default_rng(seed).integers(7, VOCAB_SIZE, length).tolist()
    )
)
"""Stretches of tokens from a small pool: sequences of them share prefixes of all lengths."""

sequences = st.lists(runs, min_size=1, max_size=6).map(lambda some: [*chain(*some)][:MAX_LENGTH])
batches = st.lists(sequences.filter(lambda ids: len(ids) > 1), min_size=2, max_size=7)


@cache
def case(family: str, kind: str, deterministic: bool = False) -> Case:
    return Case(family, kind, deterministic=deterministic)


def assert_same_as_alone(case: Case, items: Sequence[Encoded]) -> None:
    for item, found in zip(items, case.backend.run(items), strict=True):
        expected = case.expected(item)
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


KINDS = {
    **dict.fromkeys(CAUSAL, ("orm", "logprobs")),
    **dict.fromkeys((*ENCODERS, "deberta_v2", "bloom"), ("orm",)),
}
WITH_STEPS = ("llama", "qwen2", "mistral", "gpt2", "bert", "roberta", "modernbert", "deberta_v2")
CASES = [
    *((family, kind) for family, kinds in KINDS.items() for kind in kinds),
    *((family, "prm") for family in WITH_STEPS),
]


@pytest.mark.parametrize(("family", "kind"), CASES)
@given(batch=batches)
@FEW
def test_any_batch_gives_the_scores_of_single_samples(
    family: str, kind: str, batch: list[list[int]]
) -> None:
    found = case(family, kind)
    assert_same_as_alone(found, [found.item(ids) for ids in batch])


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
def test_what_can_be_packed_is(family: str) -> None:
    batching = case(family, "orm").backend.batching
    assert (batching.kind, batching.reason) == ("packed", "")
    assert batching.shares_prefixes == (family in CAUSAL)


DETERMINISTIC = ("llama", "mistral", "gemma2", "gpt_neox", "gpt2", "gpt_oss", "bert", "modernbert")


@pytest.mark.parametrize(
    ("family", "kind"), [*((family, "orm") for family in DETERMINISTIC), ("llama", "logprobs")]
)
@given(batch=batches, data=st.data())
@FEW
def test_deterministic_scores_do_not_depend_on_the_batch(
    family: str, kind: str, batch: list[list[int]], data: st.DataObject
) -> None:
    found = case(family, kind, deterministic=True)
    items = [found.item(ids) for ids in batch]
    alone = [found.backend.run([item])[0] for item in items]
    order = data.draw(st.permutations(range(len(items))))
    cut = data.draw(st.integers(1, len(order)))
    for part in (order[:cut], order[cut:]):
        if part:
            numbers_of = found.backend.run([items[i] for i in part])
            for index, numbers in zip(part, numbers_of, strict=True):
                assert numbers.tobytes() == alone[index].tobytes()
    assert_same_as_alone(found, items)


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_deterministic_scores_hold_in_both_precisions_and_over_several_blocks(
    family: str, dtype: torch.dtype
) -> None:
    found = Case(family, "orm", deterministic=True, dtype=dtype)
    assert found.backend.batching.kind == "packed"
    rng = np.random.default_rng(0)
    prefix = rng.integers(7, VOCAB_SIZE, 70).tolist()
    items = [found.item(prefix + rng.integers(7, VOCAB_SIZE, n).tolist()) for n in (1, 20, 50)]
    items += [found.item(rng.integers(7, VOCAB_SIZE, n).tolist()) for n in (5, 64, 110)]
    alone = [found.backend.run([item])[0].tobytes() for item in items]
    together = [numbers.tobytes() for numbers in found.backend.run(items)]
    backwards = [numbers.tobytes() for numbers in found.backend.run(items[::-1])][::-1]
    assert together == alone
    assert backwards == alone
