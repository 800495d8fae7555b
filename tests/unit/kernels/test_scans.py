"""`gae` and `discounted_scan` against plain loops."""

from __future__ import annotations

import pytest
import torch

from rewardsvc.kernels import discounted_scan, gae


def _gae_loop(rewards, values, mask, gamma, lam, last_values):
    advantages = torch.zeros(rewards.shape, dtype=torch.float64)
    for b in range(len(rewards)):
        running, following = 0.0, float(last_values[b])
        for t in reversed(range(rewards.shape[1])):
            if mask[b, t]:
                value = float(values[b, t])
                delta = float(rewards[b, t]) + gamma * following - value
                running = delta + gamma * lam * running
                following = value
                advantages[b, t] = running
    return advantages, torch.where(mask, advantages + values, 0.0)


@pytest.mark.parametrize("num_tokens", [1, 5, 33, 1025])
def test_gae_matches_a_loop(quick_backend, num_tokens):
    rewards, values = torch.randn(3, num_tokens), torch.randn(3, num_tokens)
    mask, last = torch.rand(3, num_tokens) > 0.3, torch.randn(3)
    mask[2] = False
    options = {"gamma": 0.97, "lam": 0.9}
    got = gae(rewards, values, mask=mask, last_values=last, backend=quick_backend, **options)
    want = _gae_loop(rewards, values, mask, last_values=last, **options)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


def test_gae_steps_over_gaps_as_if_they_were_not_there(quick_backend):
    rewards, values = torch.randn(1, 7), torch.randn(1, 7)
    mask = torch.tensor([[False, True, True, False, False, True, False]])
    rewards[~mask], values[~mask] = torch.nan, torch.nan
    got, returns = gae(rewards, values, mask=mask, gamma=0.9, lam=0.8, backend=quick_backend)
    short, short_returns = gae(
        rewards[mask][None], values[mask][None], gamma=0.9, lam=0.8, backend=quick_backend
    )
    torch.testing.assert_close(got[mask], short[0])
    torch.testing.assert_close(returns[mask], short_returns[0])
    assert not got[~mask].any()
    assert not returns[~mask].any()


def test_gae_with_gradients_gives_the_same_numbers(quick_backend):
    rewards, values = torch.randn(2, 9), torch.randn(2, 9)
    mask = torch.rand(2, 9) > 0.3
    values[~mask] = torch.nan
    plain = gae(rewards, values, mask=mask, backend=quick_backend)
    leaf = values.clone().requires_grad_()
    in_graph = gae(rewards, leaf, mask=mask, backend=quick_backend)
    for a, b in zip(plain, in_graph, strict=True):
        torch.testing.assert_close(b.detach(), a)
    in_graph[0].sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[~mask].any()


def test_gae_gradcheck():
    rewards, values = (torch.randn(2, 6, dtype=torch.float64, requires_grad=True) for _ in "rv")
    last = torch.randn(2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True, False, True], [False] * 6])

    def outputs(r, v, x):
        return gae(r, v, mask=mask, gamma=0.9, lam=0.7, last_values=x)

    assert torch.autograd.gradcheck(outputs, (rewards, values, last))


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 33, 1025])
def test_discounted_scan_matches_a_loop(quick_backend, reverse, num_tokens):
    x, mask, initial = torch.randn(2, num_tokens), torch.rand(2, num_tokens) > 0.3, torch.randn(2)
    options = {"mask": mask, "initial": initial, "reverse": reverse, "backend": quick_backend}
    got = discounted_scan(x, discount=0.9, **options)
    want = torch.zeros(2, num_tokens, dtype=torch.float64)
    for b in range(2):
        running = float(initial[b])
        for t in reversed(range(num_tokens)) if reverse else range(num_tokens):
            if mask[b, t]:
                running = float(x[b, t]) + 0.9 * running
                want[b, t] = running
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [True, False])
def test_discounted_scan_gradcheck(reverse):
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 7) > 0.4
    mask[1] = False

    def outputs(a, b):
        return discounted_scan(a, discount=0.8, mask=mask, initial=b, reverse=reverse)

    assert torch.autograd.gradcheck(outputs, (x, initial))


def test_no_tokens_and_no_rows(quick_backend):
    for shape in ((0, 4), (3, 0)):
        empty = torch.zeros(shape)
        advantages, returns = gae(empty, empty, backend=quick_backend)
        assert advantages.shape == returns.shape == shape
        assert discounted_scan(empty, discount=0.5, backend=quick_backend).shape == shape


def test_malformed_arguments_are_named():
    with pytest.raises(ValueError, match="x has shape"):
        discounted_scan(torch.zeros(3), discount=1.0)
    with pytest.raises(ValueError, match=r"rewards has shape \(2, 3\); expected \(2, 4\)"):
        gae(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="mask has shape"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="last_values has shape"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), last_values=torch.zeros(3))
