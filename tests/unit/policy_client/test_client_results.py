"""ScoreBatch and TokenLogProbs as their users see them."""

import numpy as np
import pytest

from rewardsvc.errors import ItemError, ItemErrorCode
from rewardsvc.policy_client import ItemScore, ScoreBatch, ScoringFailed, TokenLogProbs, Verdict
from rewardsvc.policy_client.client.scores import batch_of

ERROR = ItemError(ItemErrorCode.TOO_LONG, "9 tokens, at most 8")
ITEMS = [
    ItemScore(id="a", value=1.0, components={"m": 2.0}, verdict=Verdict.ACCEPTED, version="v1"),
    ItemScore(id="b", error=ERROR, version="v1"),
    ItemScore(id="c", value=0.0, steps=np.float32([0.5, 0.25]), version="v2"),
]


def test_columns_and_rows_say_the_same() -> None:
    batch = batch_of(ITEMS)
    assert batch.values.dtype == np.float32
    assert batch.mask.tolist() == [True, False, True]
    assert np.isnan(batch.values[1])
    assert batch.values[2] == 0.0
    assert batch.version == "v1|v2"
    for item, original in zip(batch, ITEMS, strict=True):
        assert (item.id, item.value, item.components) == (
            original.id,
            original.value,
            original.components,
        )
        assert (item.error, item.verdict, item.version) == (
            original.error,
            original.verdict,
            original.version,
        )
        np.testing.assert_array_equal(item.steps, original.steps)


def test_slices_and_concat_are_inverse() -> None:
    batch = batch_of(ITEMS)
    joined = ScoreBatch.concat([batch[:1], batch[1:1], batch[1:]])
    np.testing.assert_array_equal(joined.values, batch.values)
    np.testing.assert_array_equal(joined.components["m"], batch.components["m"])
    assert joined.ids == batch.ids
    assert joined.errors == batch.errors
    assert batch[-1].id == "c"
    with pytest.raises(IndexError):
        batch[3]


def test_concat_fills_what_a_batch_lacks() -> None:
    joined = ScoreBatch.concat([batch_of(ITEMS[:1]), batch_of(ITEMS[2:])])
    np.testing.assert_array_equal(joined.components["m"], np.float32([2, np.nan]))
    assert joined.steps is not None
    assert [len(step) for step in joined.steps] == [0, 2]
    assert len(ScoreBatch.concat([])) == 0


def test_raise_for_errors_names_the_first_and_keeps_all() -> None:
    batch_of(ITEMS[:1]).raise_for_errors()
    with pytest.raises(ScoringFailed, match="1 of 3 items .* 'b': too_long: 9 tokens") as failure:
        batch_of(ITEMS).raise_for_errors()
    assert failure.value.errors == (("b", ERROR),)


def logprobs() -> TokenLogProbs:
    return TokenLogProbs(
        logprobs=[np.float32([-1, -2]), np.float32([np.nan]), np.float32([])],
        entropies=None,
        errors=[None, ERROR, None],
        versions=["v1", "v1", "v1"],
    )


def test_padding_masks_what_is_no_logprob() -> None:
    values, mask = logprobs().padded(length=3)
    assert values.tolist() == [[-1, -2, 0], [0, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[True, True, False], [False] * 3, [False] * 3]
    values, mask = logprobs().padded(length=3, side="left", fill=9)
    assert values[0].tolist() == [9, -1, -2]
    assert mask[0].tolist() == [False, True, True]


def test_padding_never_cuts() -> None:
    with pytest.raises(ValueError, match="length is 1, and the longest sequence has 2"):
        logprobs().padded(length=1)
    with pytest.raises(ValueError, match="entropy=True"):
        logprobs().padded_entropies()
    with pytest.raises(ScoringFailed, match="1 of 3"):
        logprobs().raise_for_errors()
