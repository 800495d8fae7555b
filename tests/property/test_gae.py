"""Token-level returns and advantages against plain loops, in float64."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewardsvc.policy_client.algorithms.returns import gae, rewards_to_go, spread_rewards

NUMBER = st.floats(-10, 10)


@st.composite
def token_rows(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a mask with any gaps; masked entries are NaN."""
    width = draw(st.integers(0, 6))
    cell = st.tuples(NUMBER, NUMBER, st.booleans())
    row = st.lists(cell, min_size=width, max_size=width)
    rows = draw(st.lists(row, min_size=1, max_size=4))
    mask = torch.tensor([[c[2] for c in row] for row in rows], dtype=torch.bool)
    mask = mask.view(len(rows), width)
    columns = [
        torch.tensor([[c[k] for c in row] for row in rows], dtype=torch.float64) for k in range(2)
    ]
    rewards, values = (torch.where(mask, x.view(mask.shape), math.nan) for x in columns)
    return rewards, values, mask


def loop_gae(
    rewards: list[float], values: list[float], gamma: float, lam: float, last: float
) -> list[float]:
    """Equation 16 as it stands: a sum of discounted deltas, for every token anew."""
    following = [*values, last][1:]
    deltas = [
        reward + gamma * after - value
        for reward, after, value in zip(rewards, following, values, strict=True)
    ]
    return [
        sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def expand(rows: list[list[float]], mask: Tensor) -> Tensor:
    """Puts each row's numbers where its mask is True."""
    result = torch.zeros(mask.shape, dtype=torch.float64)
    for index, row in enumerate(rows):
        result[index, mask[index]] = torch.tensor(row, dtype=torch.float64)
    return result


@settings(deadline=None)
@given(rows=token_rows(), gamma=st.floats(0, 1), lam=st.floats(0, 1), last=NUMBER)
def test_gae_equals_the_loop_over_unmasked_tokens(
    rows: tuple[Tensor, Tensor, Tensor], gamma: float, lam: float, last: float
) -> None:
    rewards, values, mask = rows
    last_values = torch.full((len(mask),), last, dtype=torch.float64)
    advantages, returns = gae(
        rewards, values, mask, gamma=gamma, lam=lam, last_values_N=last_values
    )
    expected = [
        loop_gae(r[m].tolist(), v[m].tolist(), gamma, lam, last)
        for r, v, m in zip(rewards, values, mask, strict=True)
    ]
    torch.testing.assert_close(advantages, expand(expected, mask), rtol=1e-9, atol=1e-9)
    expected_returns = torch.where(mask, expand(expected, mask) + values, 0.0)
    torch.testing.assert_close(returns, expected_returns, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(rows=token_rows(), gamma=st.floats(0, 1))
def test_rewards_to_go_equal_the_loop(rows: tuple[Tensor, Tensor, Tensor], gamma: float) -> None:
    rewards, _, mask = rows
    expected = []
    for row, kept in zip(rewards, mask, strict=True):
        left = row[kept].tolist()
        expected.append(
            [sum(gamma ** (k - t) * left[k] for k in range(t, len(left))) for t in range(len(left))]
        )
    result = rewards_to_go(rewards, mask, gamma=gamma)
    torch.testing.assert_close(result, expand(expected, mask), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(rows=token_rows())
def test_a_completions_reward_stands_at_its_last_sampled_token(
    rows: tuple[Tensor, Tensor, Tensor],
) -> None:
    penalties, _, mask = rows
    rewards = torch.arange(1.0, len(mask) + 1, dtype=torch.float64)
    result = spread_rewards(rewards, mask, penalties_NT=penalties)
    for index, kept in enumerate(mask):
        row = [-p for p in penalties[index][kept].tolist()]
        if row:
            row[-1] += rewards[index].item()
        assert result[index][kept].tolist() == row
        assert (result[index][~kept] == 0).all()


def test_monte_carlo_advantages_are_returns_minus_values() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.25, 0.75]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert returns.tolist() == [[1.0, 1.0, 1.0]]
    assert advantages.tolist() == [[0.5, 0.75, 0.25]]
