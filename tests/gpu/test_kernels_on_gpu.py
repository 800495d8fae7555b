"""The Triton kernels on a real device against float64 in plain torch, values and gradients."""

from __future__ import annotations

import pytest
import torch

from rewardsvc.kernels import (
    Objective,
    PolicyLossSpec,
    RatioLevel,
    gae,
    last_token_head,
    linear_logprob,
    policy_loss,
    selective_logprob,
)
from rewardsvc.kernels.reference import reference_stats
from rewardsvc.kernels.transform import LogitTransform
from rewardsvc.policy_client.algorithms.returns import gae as algorithms_gae

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _relative(got, want):
    return float((got.double() - want).norm() / want.norm().clamp(min=1e-12))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 151, 1000, 1001, 32000, 129920])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_selective_logprob(dtype, vocab_size, softcap):
    logits = (torch.randn(33, vocab_size, device="cuda") * 3).to(dtype).requires_grad_()
    ids = torch.randint(0, vocab_size, (33,), device="cuda")
    transform = LogitTransform(temperature=0.7, softcap=softcap)
    topk = min(4, vocab_size)
    got = selective_logprob(logits, ids, temperature=0.7, softcap=softcap, entropy=True, topk=topk)
    truth = logits.detach().double().requires_grad_()
    want = reference_stats(truth, ids, transform, topk=topk)
    tol = (2e-6 if dtype == torch.float32 else 2e-5) * max(1.0, float(truth.abs().max()) / 0.7)
    for a, b in ((got.logp, want.logp), (got.entropy, want.entropy), (got.lse, want.lse)):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tol)
    torch.testing.assert_close(got.topk.logp.double(), want.topk.logp, rtol=0, atol=tol)
    (grad,) = torch.autograd.grad((got.logp + got.entropy).sum(), logits)
    (true_grad,) = torch.autograd.grad((want.logp + want.entropy).sum(), truth)
    assert vocab_size == 1 or _relative(grad, true_grad) < (
        1e-5 if dtype == torch.float32 else 1e-2
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [50, 123, 1024])
@pytest.mark.parametrize("workspace_mib", [0, 8, None])
def test_linear_logprob(dtype, hidden_size, workspace_mib):
    hidden = torch.randn(300, hidden_size, device="cuda").to(dtype)
    weight = (torch.randn(5001, hidden_size, device="cuda") / hidden_size**0.5).to(dtype)
    bias = torch.randn(5001, device="cuda").to(dtype)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    truth = [t.detach().double().requires_grad_() for t in leaves]
    ids = torch.randint(0, 5001, (300,), device="cuda")
    ids[::7] = -100
    got = linear_logprob(
        *leaves[:2], ids, bias=leaves[2], entropy=True, workspace_mib=workspace_mib
    )
    logits = truth[0] @ truth[1].T + truth[2]
    want = reference_stats(logits, ids, LogitTransform(), mask=ids >= 0)
    exact = dtype == torch.float32 or workspace_mib == 0
    tol = (2e-5 if exact else 1e-2) * float(logits.abs().max())
    for a, b in ((got.logp, want.logp), (got.entropy, want.entropy)):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tol)
    grads = torch.autograd.grad((got.logp - got.entropy).sum(), leaves)
    true_grads = torch.autograd.grad((want.logp - want.entropy).sum(), truth)
    for grad, true_grad in zip(grads, true_grads, strict=True):
        assert _relative(grad, true_grad) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("workspace_mib", [0, None])
def test_a_row_does_not_depend_on_its_neighbours(workspace_mib):
    hidden = torch.randn(2000, 512, device="cuda").bfloat16()
    weight = torch.randn(32000, 512, device="cuda").bfloat16() / 512**0.5
    ids = torch.randint(0, 32000, (2000,), device="cuda")
    options = {"entropy": True, "workspace_mib": workspace_mib}
    whole = linear_logprob(hidden, weight, ids, **options)
    for rows in (slice(0, 1), slice(1500, 1501), slice(3, 700)):
        part = linear_logprob(hidden[rows], weight, ids[rows], **options)
        assert torch.equal(part.logp, whole.logp[rows])
        assert torch.equal(part.entropy, whole.entropy[rows])


def test_more_rows_than_a_grid_axis_holds():
    logits = torch.randn(65_537, 300, device="cuda").bfloat16().requires_grad_()
    ids = torch.randint(0, 300, (65_537,), device="cuda")
    got = selective_logprob(logits, ids, entropy=True)
    (grad,) = torch.autograd.grad(got.logp.sum(), logits)
    want = torch.log_softmax(logits.detach().double(), -1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(got.logp.double(), want, rtol=0, atol=1e-4)
    assert torch.isfinite(grad).all()


def test_row_offsets_pass_two_to_the_31():
    logits = torch.randn(17, 151_936, device="cuda").bfloat16()
    big = torch.empty(14_500, 151_936, device="cuda", dtype=torch.bfloat16)
    big[-17:] = logits
    ids = torch.randint(0, 151_936, (14_500,), device="cuda")
    mask = torch.zeros(14_500, dtype=torch.bool, device="cuda")
    mask[-17:] = True
    far = selective_logprob(big, ids, mask=mask, entropy=True)
    near = selective_logprob(logits, ids[-17:], entropy=True)
    assert torch.equal(far.logp[-17:], near.logp)
    assert torch.equal(far.entropy[-17:], near.entropy)


def test_id_out_of_range_is_named_and_the_device_lives_on():
    logits = torch.randn(4, 151, device="cuda")
    with pytest.raises(ValueError, match=r"ids\[2\].* is 151"):
        selective_logprob(logits, torch.tensor([0, 1, 151, 3], device="cuda"))
    assert torch.isfinite(
        selective_logprob(logits, torch.zeros(4, dtype=torch.long, device="cuda")).logp
    ).all()


@pytest.mark.parametrize("level", list(RatioLevel))
@pytest.mark.parametrize("objective", list(Objective))
def test_policy_loss(level, objective):
    logp = (torch.randn(7, 3000) * 0.1).requires_grad_()
    old, advantages = logp.detach() + torch.randn(7, 3000) * 0.01, torch.randn(7, 3000)
    mask, ref = torch.rand(7, 3000) > 0.3, old + 0.1
    spec = PolicyLossSpec(objective=objective, ratio=level, kl_coef=0.1)
    want = policy_loss(logp, old, advantages, mask, spec=spec, ref_logp=ref)
    (want_grad,) = torch.autograd.grad(want.loss, logp)
    leaf = logp.detach().cuda().requires_grad_()
    got = policy_loss(
        leaf, old.cuda(), advantages.cuda(), mask.cuda(), spec=spec, ref_logp=ref.cuda()
    )
    (grad,) = torch.autograd.grad(got.loss, leaf)
    torch.testing.assert_close(got.loss.cpu(), want.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad.cpu(), want_grad, rtol=1e-3, atol=1e-7)


def test_gae():
    rewards, values = torch.randn(5, 5000), torch.randn(5, 5000)
    mask = torch.rand(5, 5000) > 0.3
    want = gae(rewards, values, mask=mask)
    got = gae(rewards.cuda(), values.cuda(), mask=mask.cuda())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)


def test_last_token_head():
    hidden, weight = torch.randn(20, 64).bfloat16(), torch.randn(1, 64).bfloat16()
    cu_seqlens = torch.tensor([0, 4, 20], dtype=torch.int32)
    want = last_token_head(hidden, cu_seqlens, weight)
    got = last_token_head(hidden.cuda(), cu_seqlens.cuda(), weight.cuda())
    torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-4)


def test_the_trainers_gae_takes_the_kernel_and_gives_the_loops_numbers():
    rewards, values = torch.randn(5, 700), torch.randn(5, 700)
    mask, last = torch.rand(5, 700) > 0.3, torch.randn(5)
    want = algorithms_gae(rewards, values, mask, gamma=0.99, lam=0.9, last_values_N=last)
    got = algorithms_gae(
        *(x.cuda() for x in (rewards, values, mask)),
        gamma=0.99,
        lam=0.9,
        last_values_N=last.cuda(),
    )
    for a, b in zip(got, want, strict=True):
        assert a.is_cuda
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
