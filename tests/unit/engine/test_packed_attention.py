"""Every form of attention over packed batches, against a dense mask made from the sequences."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rewardsvc.engine.packing import canonical, fused, segments
from rewardsvc.engine.packing.attention import packed_attention, packed_mask
from rewardsvc.engine.packing.layer import Layer, Mask
from rewardsvc.engine.packing.plan import PackingError, Plan, active
from rewardsvc.engine.packing.prefixes import PrefixTree, prefix_tree
from rewardsvc.engine.types import Encoded

HEADS, KEY_HEADS, SIZE = 4, 2, 16
TOLERANCE = 2e-6


def some_batch(*, long: int = 90) -> list[Encoded]:
    """Two completions of one prompt, one that goes on from the other, a prefix, and a stranger."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> list[int]:
        return rng.integers(0, 1000, length).tolist()

    prompt, first, second = tokens(30), tokens(12), tokens(long)
    found = [prompt + first, prompt + second, prompt + first + tokens(70), prompt[:20], tokens(9)]
    return [
        Encoded(token_ids=np.asarray(ids, np.int32), positions=np.zeros(1, np.int32))
        for ids in found
    ]


def plan_of(batch: list[Encoded], *, share: bool = True) -> tuple[Plan, PrefixTree]:
    tree = prefix_tree(batch, share=share)
    positions = np.zeros(tree.num_rows, np.int64)
    for index, item in enumerate(batch):
        positions[tree.rows_of(index, np.arange(len(item)))] = np.arange(len(item))
    plan = Plan(nodes=tree.nodes, num_rows=tree.num_rows, positions=torch.from_numpy(positions))
    return plan, tree


def dense(query: Tensor, key: Tensor, value: Tensor, layer: Layer, seen: Tensor) -> Tensor:
    """[H, T, D] by the definition, in double precision."""
    query, key, value = query.double(), key.double(), value.double()
    key, value = (part.repeat_interleave(HEADS // KEY_HEADS, 0) for part in (key, value))
    logits = query @ key.transpose(-1, -2) * layer.scale
    if layer.softcap is not None:
        logits = layer.softcap * (logits / layer.softcap).tanh()
    logits = logits.masked_fill(~seen, -torch.inf)
    if layer.sinks is None:
        return logits.softmax(-1) @ value
    sink = layer.sinks.double()[:, None, None].expand(-1, logits.shape[1], 1)
    return torch.cat([logits, sink], -1).softmax(-1)[..., :-1] @ value


def seen_in(batch: list[Encoded], tree: PrefixTree, mask: Mask) -> Tensor:
    """bool [T, T]: which row sees which, sequence by sequence."""
    seen = torch.zeros(tree.num_rows, tree.num_rows, dtype=torch.bool)
    for index, item in enumerate(batch):
        rows = tree.rows_of(index, np.arange(len(item)))
        for (p, row), (q, other) in itertools.product(enumerate(rows), enumerate(rows)):
            inside = q <= p if mask.causal else True
            if mask.window is not None:
                inside &= p - q < mask.window if mask.causal else abs(p - q) <= mask.window
            seen[row, other] |= inside
    return seen


def case(layer: Layer, *, share: bool = True) -> tuple[Plan, tuple[Tensor, Tensor, Tensor], Tensor]:
    batch = some_batch()
    plan, tree = plan_of(batch, share=share)
    torch.manual_seed(0)
    parts = (
        torch.randn(HEADS, tree.num_rows, SIZE),
        torch.randn(KEY_HEADS, tree.num_rows, SIZE),
        torch.randn(KEY_HEADS, tree.num_rows, SIZE),
    )
    return plan, parts, dense(*parts, layer, seen_in(batch, tree, layer.mask))


pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CAUSAL = Layer(mask=Mask(causal=True), scale=0.3)
LAYERS = {
    "causal": CAUSAL,
    "sinks": replace(CAUSAL, sinks=torch.tensor([0.0, 1.0, -1.0, 4.0])),
    "window": replace(CAUSAL, mask=Mask(causal=True, window=17)),
    "softcap": replace(CAUSAL, softcap=2.0),
    "all": Layer(mask=Mask(causal=True, window=5), scale=0.3, softcap=1.0, sinks=torch.ones(HEADS)),
}
BIDIRECTIONAL = {
    "plain": Layer(mask=Mask(causal=False), scale=0.3),
    "window": Layer(mask=Mask(causal=False, window=7), scale=0.3),
}


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["causal", "sinks"])
def test_cascade_is_attention_by_definition(name: str) -> None:
    plan, parts, expected = case(LAYERS[name])
    assert_close(segments.cascade(*parts, LAYERS[name], plan), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_node_by_node_is_attention_by_definition(name: str) -> None:
    plan, parts, expected = case(LAYERS[name])
    assert_close(segments.by_node(*parts, LAYERS[name], plan), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_canonical_form_is_attention_by_definition(name: str) -> None:
    plan, parts, expected = case(LAYERS[name])
    assert_close(canonical.attention(*parts, LAYERS[name], plan), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_flex_form_is_attention_by_definition(name: str) -> None:
    plan, parts, expected = case(LAYERS[name])
    assert_close(fused.flex(*parts, LAYERS[name], plan), expected)


def on_cpu(
    span: fused.Span, query: Tensor, key: Tensor, value: Tensor, layer: Layer
) -> tuple[Tensor, Tensor]:
    """What the flash kernel for several lengths computes, run by run."""
    out, denominator = torch.zeros_like(query), torch.zeros(query.shape[1], len(query))
    bounds = zip(
        itertools.pairwise(span.query_bounds.tolist()),
        itertools.pairwise(span.key_bounds.tolist()),
        strict=True,
    )
    for (start, stop), (first, last) in bounds:
        assert stop - start <= span.max_queries
        assert last - first <= span.max_keys
        mask = replace(layer.mask, causal=span.causal)
        found, part = segments.attend(
            query[start:stop].transpose(0, 1),
            key[first:last].transpose(0, 1),
            value[first:last].transpose(0, 1),
            replace(layer, mask=mask),
        )
        out[start:stop], denominator[:, start:stop] = found.transpose(0, 1), part
    return out, denominator


@pytest.mark.parametrize("name", ["causal", "sinks"])
def test_runs_of_several_lengths_add_up_to_attention(name: str) -> None:
    plan, parts, expected = case(LAYERS[name])
    assert_close(fused.varlen(*parts, LAYERS[name], plan, kernel=on_cpu), expected)


@pytest.mark.parametrize("name", BIDIRECTIONAL)
@pytest.mark.parametrize("form", [segments.by_node, canonical.attention, fused.flex])
def test_encoders_see_both_ways_within_their_sequence(name: str, form: object) -> None:
    plan, parts, expected = case(BIDIRECTIONAL[name], share=False)
    assert callable(form)
    assert_close(form(*parts, BIDIRECTIONAL[name], plan), expected)


def test_values_may_be_narrower_than_keys() -> None:
    plan, (query, key, value), _ = case(CAUSAL)
    narrow = value[..., :6]
    wide = segments.cascade(query, key, value, CAUSAL, plan)
    torch.testing.assert_close(
        segments.cascade(query, key, narrow, CAUSAL, plan), wide[..., :6], rtol=0, atol=TOLERANCE
    )


def test_window_that_no_sequence_reaches_makes_no_difference() -> None:
    mask = Mask(causal=True, window=64)
    assert mask.reaches(64)
    assert not mask.reaches(65)
    assert Mask(causal=False, window=64).reaches(65)
    assert not Mask(causal=False, window=64).reaches(66)


def call(attention_mask: object, num_rows: int, **more: object) -> None:
    query = torch.zeros(1, HEADS, num_rows, SIZE)
    key = torch.zeros(1, KEY_HEADS, num_rows, SIZE)
    packed_attention(None, query, key, key, attention_mask, **more)


def test_attention_that_is_not_understood_is_refused() -> None:
    plan, tree = plan_of(some_batch())
    mask = Mask(causal=True)
    with pytest.raises(PackingError, match="outside"):
        call(mask, tree.num_rows)
    with active(plan):
        call(mask, tree.num_rows)
        with pytest.raises(PackingError, match="makes its attention masks itself"):
            call(torch.zeros(1), tree.num_rows)
        with pytest.raises(PackingError, match="something else than the tokens"):
            call(mask, tree.num_rows + 1)
        with pytest.raises(PackingError, match="depend on positions"):
            call(mask, tree.num_rows, position_bias=torch.zeros(1))
    assert plan.num_calls == 4


def test_masks_that_are_not_understood_are_refused() -> None:
    class Config:
        sliding_window = 8

    assert packed_mask(local_size=8, config=Config()) == Mask(causal=True, window=8)
    assert packed_mask(allow_is_bidirectional_skip=True) == Mask(causal=False)
    with pytest.raises(PackingError, match="rules of its own"):
        packed_mask(use_vmap=True)
    with pytest.raises(PackingError, match="chunks"):
        packed_mask(local_size=16, config=Config())
