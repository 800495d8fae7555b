"""Advantages of groups against plain loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.policy_client.algorithms.advantages import (
    GROUP_STD_EPS,
    group_normalised,
    leave_one_out,
)
from rewardsvc.policy_client.algorithms.masking import masked_whiten

REWARD = st.one_of(
    st.just(math.nan),
    st.sampled_from([0.0, 1.0, 0.1]),  # ties and zero variance are the rule, not the exception
    st.floats(-1e3, 1e3, allow_nan=False),
)


@st.composite
def reward_groups(draw: st.DrawFn) -> list[list[float]]:
    size = draw(st.integers(1, 6))
    return draw(st.lists(st.lists(REWARD, min_size=size, max_size=size), min_size=1, max_size=4))


def loop_advantages(group: list[float], kind: str) -> list[float]:
    """The definition, one completion at a time; 0 without a reward or a baseline."""
    present = [reward for reward in group if not math.isnan(reward)]
    result = []
    for index, reward in enumerate(group):
        if math.isnan(reward) or len(present) < 2 or len(set(present)) == 1:
            result.append(0.0)
        elif kind == "rloo":
            others = [r for j, r in enumerate(group) if j != index and not math.isnan(r)]
            result.append(reward - sum(others) / len(others))
        else:
            mean = sum(present) / len(present)
            std = math.sqrt(sum((r - mean) ** 2 for r in present) / (len(present) - 1))
            result.append((reward - mean) / (std + GROUP_STD_EPS if kind == "grpo" else 1.0))
    return result


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@settings(deadline=None)
@given(rewards=reward_groups())
def test_group_advantages_equal_the_loop(kind: str, rewards: list[list[float]]) -> None:
    tensor = torch.tensor(rewards, dtype=torch.float64)
    result = (
        leave_one_out(tensor)
        if kind == "rloo"
        else group_normalised(tensor, scale_by_std=kind == "grpo")
    )
    expected = torch.tensor([loop_advantages(g, kind) for g in rewards], dtype=torch.float64)
    torch.testing.assert_close(result.values, expected, rtol=1e-9, atol=1e-7)
    counts = [sum(not math.isnan(r) for r in group) for group in rewards]
    valid = [
        [not math.isnan(r) and n >= 2 for r in g] for g, n in zip(rewards, counts, strict=True)
    ]
    assert result.valid.tolist() == valid
    zero_std = [
        n >= 2 and len({r for r in g if not math.isnan(r)}) == 1
        for g, n in zip(rewards, counts, strict=True)
    ]
    assert result.zero_std.tolist() == zero_std


@settings(deadline=None)
@given(rewards=reward_groups(), position=st.integers(0, 5))
def test_a_missing_reward_leaves_the_group_as_if_it_were_not_there(
    rewards: list[list[float]], position: int
) -> None:
    whole = torch.tensor(rewards, dtype=torch.float64)
    position = min(position, whole.shape[1])
    missing = torch.full_like(whole[:, :1], math.nan)
    padded = torch.cat([whole[:, :position], missing, whole[:, position:]], 1)
    for estimate in (group_normalised, leave_one_out):
        values = estimate(padded).values
        kept = torch.cat([values[:, :position], values[:, position + 1 :]], 1)
        torch.testing.assert_close(kept, estimate(whole).values)
        assert (values[:, position] == 0).all()


@settings(deadline=None)
@given(rewards=reward_groups())
def test_leave_one_out_sums_to_zero_in_each_group(rewards: list[list[float]]) -> None:
    sums = leave_one_out(torch.tensor(rewards, dtype=torch.float64)).values.sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-8)


def test_equal_rewards_have_exactly_no_advantage_in_float32() -> None:
    # The mean of three times 0.1 is not 0.1 in float32; a tiny std must not blow the rest up.
    rewards = torch.full((1, 3), 0.1)
    assert group_normalised(rewards, eps=1e-9).values.tolist() == [[0.0, 0.0, 0.0]]
    assert leave_one_out(rewards).values.tolist() == [[0.0, 0.0, 0.0]]


def test_a_missing_reward_is_not_a_zero_reward() -> None:
    missing = leave_one_out(torch.tensor([[1.0, 1.0, math.nan]]))
    zero = leave_one_out(torch.tensor([[1.0, 1.0, 0.0]]))
    assert missing.values.tolist() == [[0.0, 0.0, 0.0]]
    assert zero.values.tolist() == [[pytest.approx(0.5), pytest.approx(0.5), -1.0]]


def test_rewards_without_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="rewards_PG"):
        leave_one_out(torch.zeros(3))


@settings(deadline=None)
@given(
    rows=st.lists(
        st.lists(st.tuples(st.floats(-1e3, 1e3), st.booleans()), min_size=3, max_size=3), min_size=1
    )
)
def test_whitening_equals_the_loop(rows: list[list[tuple[float, bool]]]) -> None:
    x = torch.tensor([[value for value, _ in row] for row in rows], dtype=torch.float64)
    mask = torch.tensor([[kept for _, kept in row] for row in rows])
    kept = [value for row in rows for value, used in row if used]
    mean = sum(kept) / len(kept) if kept else 0.0
    var = sum((v - mean) ** 2 for v in kept) / (len(kept) - 1) if len(kept) > 1 else 0.0
    expected = torch.tensor(
        [[(v - mean) / math.sqrt(var + 1e-8) if used else 0.0 for v, used in row] for row in rows],
        dtype=torch.float64,
    )
    poisoned = torch.where(mask, x, math.nan)
    torch.testing.assert_close(masked_whiten(poisoned, mask), expected, rtol=1e-7, atol=1e-6)
