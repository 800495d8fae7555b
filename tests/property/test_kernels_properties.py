"""The kernels against plain references, over shapes and options that hypothesis picks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardsvc.kernels import discounted_scan, gae, linear_logprob, selective_logprob
from rewardsvc.kernels.reference import reference_stats
from rewardsvc.kernels.transform import LogitTransform
from rewardsvc.policy_client.algorithms.returns import gae as algorithms_gae

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@st.composite
def transforms(draw):
    return LogitTransform(
        temperature=draw(st.sampled_from([0.01, 0.7, 1.0, 3.0])),
        softcap=draw(st.sampled_from([None, 0.5, 30.0])),
    )


def _scale(logits, transform):
    largest = float(logits.detach().float().abs().clamp(max=1e5).max()) if logits.numel() else 1.0
    if transform.softcap is not None:
        largest = min(largest, transform.softcap)
    return max(1.0, largest / transform.temperature)


@PROPERTY
@given(
    num_rows=st.integers(0, 40),
    vocab_size=st.integers(1, 300),
    dtype=DTYPES,
    transform=transforms(),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    shift=st.sampled_from([0.0, -200.0, 1e4]),
    banned=st.floats(0, 0.99),
    seed=st.integers(0, 2**31),
)
def test_selective_logprob_is_its_definition(
    num_rows, vocab_size, dtype, transform, spread, shift, banned, seed
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * spread + shift
    drop = torch.rand(num_rows, vocab_size, generator=generator) < banned
    ids = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    if num_rows:
        drop[torch.arange(num_rows), ids] = False
    logits = logits.masked_fill(drop, -torch.inf).to(dtype)
    mask = torch.rand(num_rows, generator=generator) < 0.8
    ours, truth = logits.clone().requires_grad_(), logits.double().requires_grad_()
    topk = min(3, vocab_size)
    got = selective_logprob(
        ours,
        ids,
        temperature=transform.temperature,
        softcap=transform.softcap,
        mask=mask,
        entropy=True,
        topk=topk,
        backend="eager",
    )
    want = reference_stats(truth, ids, transform, mask=mask, topk=topk)
    scale = _scale(torch.where(drop, 0.0, logits), transform)
    for a, b in ((got.logp, want.logp), (got.entropy, want.entropy), (got.lse, want.lse)):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4e-6 * scale)
    same = want.topk.logp == got.topk.logp.double()
    close = (want.topk.logp - got.topk.logp.double()).abs() <= 4e-6 * scale
    assert (same | close).all()
    (grad,) = torch.autograd.grad((got.logp + got.entropy).sum(), ours)
    (true_grad,) = torch.autograd.grad((want.logp + want.entropy).sum(), truth)
    tol = (4e-6 if dtype == torch.float32 else 1e-2) * scale / transform.temperature
    torch.testing.assert_close(grad.double(), true_grad, rtol=1e-2, atol=tol)


@PROPERTY
@given(
    num_rows=st.integers(0, 20),
    hidden_size=st.integers(1, 70),
    vocab_size=st.integers(1, 1500),
    transform=transforms(),
    biased=st.booleans(),
    ignored=st.floats(0, 1),
    workspace_mib=st.sampled_from([0, 1, None]),
    seed=st.integers(0, 2**31),
)
def test_linear_logprob_is_its_definition(
    num_rows, hidden_size, vocab_size, transform, biased, ignored, workspace_mib, seed
):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, hidden_size, generator=generator)
    weight = torch.randn(vocab_size, hidden_size, generator=generator) / hidden_size**0.5
    bias = torch.randn(vocab_size, generator=generator) if biased else None
    ids = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    ids[torch.rand(num_rows, generator=generator) < ignored] = -100
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    truth = [leaf.detach().double().requires_grad_() for leaf in leaves]
    got = linear_logprob(
        *leaves,
        ids,
        bias=bias,
        temperature=transform.temperature,
        softcap=transform.softcap,
        entropy=True,
        workspace_mib=workspace_mib,
        backend="eager",
    )
    logits = truth[0] @ truth[1].T + (0.0 if bias is None else bias.double())
    want = reference_stats(logits, ids, transform, mask=ids >= 0)
    scale = _scale(logits, transform)
    for a, b in ((got.logp, want.logp), (got.entropy, want.entropy), (got.lse, want.lse)):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4e-6 * scale)
    grads = torch.autograd.grad((got.logp - got.entropy).sum(), leaves)
    true_grads = torch.autograd.grad((want.logp - want.entropy).sum(), truth)
    for grad, true_grad in zip(grads, true_grads, strict=True):
        bound = 4e-6 * scale / transform.temperature * max(1, num_rows)
        torch.testing.assert_close(grad.double(), true_grad, rtol=1e-4, atol=bound)


@PROPERTY
@given(
    num_rows=st.integers(1, 4),
    num_tokens=st.integers(0, 30),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    kept=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_gae_is_the_loop_over_what_is_kept(num_rows, num_tokens, gamma, lam, kept, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_tokens)
    rewards, values = (torch.randn(shape, generator=generator).double() for _ in "rv")
    mask = torch.rand(shape, generator=generator) < kept
    advantages, returns = gae(rewards, values, mask=mask, gamma=gamma, lam=lam)
    for b in range(num_rows):
        running = following = 0.0
        for t in reversed(range(num_tokens)):
            if not mask[b, t]:
                assert advantages[b, t] == returns[b, t] == 0
                continue
            delta = float(rewards[b, t]) + gamma * following - float(values[b, t])
            running = delta + gamma * lam * running
            following = float(values[b, t])
            assert abs(float(advantages[b, t]) - running) < 1e-9
            assert abs(float(returns[b, t]) - running - following) < 1e-9


@PROPERTY
@given(
    num_rows=st.integers(1, 4),
    num_tokens=st.integers(0, 30),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    kept=st.floats(0, 1),
    bootstrapped=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_gae_is_that_of_the_trainers_algorithms(
    num_rows, num_tokens, gamma, lam, kept, bootstrapped, seed
):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_tokens)
    mask = torch.rand(shape, generator=generator) < kept
    rewards, values = (
        torch.randn(shape, generator=generator).double().masked_fill(~mask, torch.nan) for _ in "rv"
    )
    last = torch.randn(num_rows, generator=generator).double() if bootstrapped else None
    got = gae(rewards, values, mask=mask, gamma=gamma, lam=lam, last_values=last)
    want = algorithms_gae(rewards, values, mask, gamma=gamma, lam=lam, last_values_N=last)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@PROPERTY
@given(num_tokens=st.integers(0, 30), kept=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_a_backward_scan_is_a_forward_scan_of_the_flipped_row(num_tokens, kept, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, num_tokens, generator=generator)
    mask = torch.rand(2, num_tokens, generator=generator) < kept
    back = discounted_scan(x, discount=0.9, mask=mask)
    ahead = discounted_scan(x.flip(1), discount=0.9, mask=mask.flip(1), reverse=False)
    assert torch.equal(back, ahead.flip(1))
