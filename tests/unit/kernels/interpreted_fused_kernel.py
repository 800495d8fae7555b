"""The forward pass in one kernel: runs where there is Triton, which in tests is its interpreter."""

from __future__ import annotations

import pytest
import torch

from rewardsvc.kernels import linear_logprob
from rewardsvc.kernels.reference import reference_stats
from rewardsvc.kernels.transform import LogitTransform

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(1, 50), (151, 123), (1001, 50)])
def test_keeps_logits_in_float32(dtype, vocab_size, hidden_size, allclose, relative_error):
    hidden = torch.randn(5, hidden_size).to(dtype)
    weight = (2 * torch.randn(vocab_size, hidden_size) / hidden_size**0.5).to(dtype)
    bias = torch.randn(vocab_size).to(dtype)
    ids = torch.randint(0, vocab_size, (5,))
    ids[2] = -100
    options = {"temperature": 0.7, "softcap": 20.0, "logit_scale": 1.3}
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    truth = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    got = linear_logprob(
        *leaves[:2],
        ids,
        bias=leaves[2],
        entropy=True,
        workspace_mib=0,
        backend="triton",
        **options,
    )
    logits = truth[0] @ truth[1].T + truth[2]
    want = reference_stats(logits, ids, LogitTransform(**options), mask=ids >= 0)
    tol = 2e-6 if dtype == torch.float32 else 2e-5
    scale = float(logits.detach().abs().max()) * 1.3 / 0.7
    allclose(got.logp.detach(), want.logp.detach(), tol, scale)
    allclose(got.entropy.detach(), want.entropy.detach(), tol, scale)
    allclose(got.lse.detach(), want.lse.detach(), tol, scale)
    if vocab_size == 1:
        return
    grads = torch.autograd.grad((got.logp - got.entropy).sum(), leaves)
    true_grads = torch.autograd.grad((want.logp - want.entropy).sum(), truth)
    for grad, true_grad in zip(grads, true_grads, strict=True):
        assert relative_error(grad, true_grad) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_padding_rows_and_columns_have_no_weight():
    hidden, weight = torch.zeros(3, 16), torch.zeros(131, 16)
    got = linear_logprob(
        hidden,
        weight,
        torch.tensor([0, 130, 64]),
        bias=torch.full((131,), -200.0),
        entropy=True,
        workspace_mib=0,
        backend="triton",
    )
    uniform = torch.full((3,), 131.0).log()
    torch.testing.assert_close(got.logp, -uniform, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.entropy, uniform, rtol=0, atol=1e-5)
